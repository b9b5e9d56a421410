"""Bots to talk to. A module with a ``bot`` function starts with ``python -m bots.NAME``."""
