"""Delegation: a language model with tools behind the voice.

``delegation`` holds what a user sets, ``delegation_state`` decides what happens when,
``backend_link`` talks to Pipecat's worker, and ``delegator`` joins them with the service.
"""
