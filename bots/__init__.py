"""Bots to talk to: each file is one, and starts with ``python -m bots.NAME``."""
