"""Mouth-to-ear latency of a bot or a server, measured from outside."""
