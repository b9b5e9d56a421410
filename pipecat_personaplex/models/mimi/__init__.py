"""The Mimi codec: 24 kHz audio to eight codes per 80 ms frame, and back."""
