"""Training recipes of checkpoints; not a part of the installed package."""
