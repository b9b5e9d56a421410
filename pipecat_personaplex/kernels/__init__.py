"""Triton kernels. ``availability`` and ``rotary`` can be imported without Triton."""
