"""Suites: each reads one layout of data and yields items."""
