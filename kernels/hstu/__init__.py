"""HSTU attention in plain Triton, for NVIDIA and AMD: rows (mask), forward, backward, schedule, function (autograd)."""
