"""Low-bit formats of weights and of keys and values."""
