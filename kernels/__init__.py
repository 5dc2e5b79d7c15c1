"""Operators of an STU layer, each beside the PyTorch reference that defines it. Needs torch (and triton) only."""
