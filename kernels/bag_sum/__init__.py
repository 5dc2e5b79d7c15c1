"""Triton kernels of `kernels.bags`."""
