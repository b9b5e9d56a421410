"""ASGI middleware that protects the server, the bots and the page from what strangers send."""
