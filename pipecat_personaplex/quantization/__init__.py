"""Low-bit storage formats: weights, and keys and values. Plain PyTorch, no Triton."""
