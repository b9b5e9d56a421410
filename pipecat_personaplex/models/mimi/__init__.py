"""Mimi, the codec: 24 kHz audio to eight codes every 80 ms, and back."""
