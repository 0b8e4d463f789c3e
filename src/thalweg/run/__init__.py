"""What users call: fit, resume, load, export, and where a run's model and data come from."""
