"""The result of one check of ``personaplex doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: What was checked, in one to three words.
        status: ``ok``; ``note``, something works only in part, or only the small model can use it;
            ``problem``, a command of this package fails until it is cured.
        detail: What was found.
        cure: What to do; empty if nothing needs to be done.
    """

    subject: str
    status: Status
    detail: str
    cure: str = ""
