"""Checkpoints: where they come from, what is in them, how they are loaded and saved."""
