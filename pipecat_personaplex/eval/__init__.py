"""Evaluation of full-duplex behaviour: suites, runs, scores, tables and pages.

A suite yields items: a caller's recording and what happens in it. A run holds what the agent
answered. Scores are pure functions of words, spans of speech and events.
"""
