"""Agents for other evaluation harnesses: discrete time, and clocked by their input."""
