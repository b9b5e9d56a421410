"""The server: an engine for remote clients over WebSockets."""
