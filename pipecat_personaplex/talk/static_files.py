"""Where the built page lies."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).parent / "static"
"""The built page; ``web`` holds its source."""
