"""Fixed numbers of the released model, nvidia/personaplex-7b-v1."""

from __future__ import annotations

SAMPLE_RATE = 24_000
"""Samples a second of all audio, Hz."""
FRAME_SAMPLES = 1_920
"""Samples of one frame: 80 ms, one step of the model."""
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
CODEBOOKS = 8
"""Codebooks per speaker that the language model uses; the codec has more."""
STREAMS = 1 + 2 * CODEBOOKS
"""Rows of a token column: the text, 8 codebooks of the agent, 8 of the user."""
TEXT = 0
AGENT_CODES = slice(1, 1 + CODEBOOKS)
USER_CODES = slice(1 + CODEBOOKS, STREAMS)
USER_SEMANTIC = USER_CODES.start
USER_ACOUSTIC = slice(USER_SEMANTIC + 1, STREAMS)
DELAYS = (0, 0, *[1] * 7, 0, *[1] * 7)
"""Positions by which each stream is delayed: the acoustic codebooks by one."""
TEXT_EPAD = 0
"""Text token that ends the padding before a word."""
TEXT_PAD = 3
"""Text token of a frame without a piece of text (padding)."""
ZERO_TOKEN = -1
"""A token that embeds to exactly zero."""
MAX_PROMPT_FRAMES = 2_999
"""The released model's window, in frames: 3,000 positions of context less one.

The limit on a prompt is the larger of this and the checkpoint's own window: a prompt longer than a
smaller window is accepted, and its oldest frames are forgotten.
"""
SILENCE_FRAMES = 6
"""Silent frames of a prompt after the voice and again after the text, as in the reference."""
MAX_HISTORY_FRAMES = 3_000
"""Frames of a call that another session may take up: a window of the released model, and one more.

The limit is the larger of this and the checkpoint's own window. Clients and files store this many.
"""
