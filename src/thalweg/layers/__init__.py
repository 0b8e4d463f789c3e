"""Ordinary layers for networks: of tasks, of repairs, of your own."""
