"""The engine over WebSocket."""
