"""Repairs: findings → changes of a running training, each undone exactly where it does not help."""
