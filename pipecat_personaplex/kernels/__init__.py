"""Triton kernels, and nothing that needs Triton to be imported."""
