"""The few operators that a plan can swap in: matrix products, memory layout, the allocator's thresholds."""
