"""What the numbers of a run say: records in, verdict out; never torch."""
