"""Ready applications: each module's `make(**options)` returns the keyword arguments of `fit`."""
