"""Slots, prompts and the batched step, run on a thread of their own."""
