"""What goes over the wire between an engine's server and its clients; see server/PROTOCOL.md."""
