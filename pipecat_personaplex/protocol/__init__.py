"""The messages between a server and its clients: ``/v1/session`` (PROTOCOL.md) and Moshi's."""
