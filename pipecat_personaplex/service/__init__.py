"""The Pipecat service."""
