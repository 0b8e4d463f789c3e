"""Numbers that a run writes down: standard library and numpy, never torch."""
