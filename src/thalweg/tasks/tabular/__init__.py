"""Tables: any CSV → a network for the column that is asked for."""
