"""Recipes that make checkpoints; no part of the installed package."""
