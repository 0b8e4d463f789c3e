"""One training: step, watch, stop, save."""
