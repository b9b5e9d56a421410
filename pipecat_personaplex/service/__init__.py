"""PersonaPlex as a Pipecat service."""
