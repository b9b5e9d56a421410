"""Attacks on running processes, over loopback, while an ordinary caller measures what it hears."""
