"""Scores as pure functions of words, spans of speech and events."""
