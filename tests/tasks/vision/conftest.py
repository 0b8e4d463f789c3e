from made_up_images import class_folders, voc_folder  # noqa: F401
