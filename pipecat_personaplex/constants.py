"""Numbers of the released model."""

from __future__ import annotations

SAMPLE_RATE = 24_000
FRAME_SAMPLES = 1_920
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
CODEBOOKS = 8
"""Codebooks per speaker that the language model uses."""
STREAMS = 1 + 2 * CODEBOOKS
TEXT = 0
AGENT_CODES = slice(1, 1 + CODEBOOKS)
USER_CODES = slice(1 + CODEBOOKS, STREAMS)
USER_SEMANTIC = USER_CODES.start
USER_ACOUSTIC = slice(USER_SEMANTIC + 1, STREAMS)
DELAYS = (0, 0, *[1] * 7, 0, *[1] * 7)
TEXT_EPAD = 0
TEXT_PAD = 3
ZERO_TOKEN = -1
"""A token that embeds to exactly zero."""
MAX_PROMPT_FRAMES = 2_999
"""Frames the released model attends to; a longer prompt is refused."""
