"""Checkpoints: where the files come from, what they contain, how they are loaded and written."""
