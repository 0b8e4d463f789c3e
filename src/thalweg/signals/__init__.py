"""What a training shows of itself while it runs: tensors in, numbers out, all read together."""
