"""Benchmarks of steps, readers and inference."""
