"""Named sets of tensors, seeds, devices."""
