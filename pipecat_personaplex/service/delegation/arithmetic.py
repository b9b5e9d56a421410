"""Reads the operators of a formula as words, also where Markdown and HTML have the same signs."""

from __future__ import annotations

import re

# A value at the end of what stands before an operator, and at the start of what follows it: a
# number, a bracket or a single letter. More letters are a word, which may be emphasised.
_BEFORE = r"(?:(?<=[\d)])|(?<=\b[A-Za-z]))"
_AFTER = r"(?=[-+]?[$€£]?\d|\(|[A-Za-z]\b(?!\*\*(?!\w)))"
_POWER = re.compile(rf"{_BEFORE}[ \t]*(?:\*\*|\^)[ \t]*{_AFTER}")
_SIGNS = {"\N{MULTIPLICATION SIGN}": "times", "÷": "divided by", "\N{MINUS SIGN}": "minus"}
_SIGN = re.compile(rf"{_BEFORE}[ \t]*([{''.join(_SIGNS)}])[ \t]*{_AFTER}")
# Without spaces also between words: "price*count". With spaces a word is an item of a list.
_TIMES = re.compile(rf"(?<=[\w)])\*(?=[\w($€£])|{_BEFORE}[ \t]+\*[ \t]+{_AFTER}")
# A number with its unit, or a variable; neither the name of a tag nor its attribute.
_COMPARED = r"(?<![\w</=])(?:-?[$€£]?\d[\d.,]*(?:[ \t]?(?:%|°?[A-Za-z]{1,2}\b))?|[a-z])"
_COMPARISON = re.compile(rf"({_COMPARED})[ \t]*([<>]=?)[ \t]*(?=-?[$€£]?\d)")
_RELATIONS = {
    "<": "is less than",
    ">": "is greater than",
    "<=": "is at most",
    ">=": "is at least",
}
_EMPHASISED_NUMBER = re.compile(r"(?<![\w*)])(\*{1,3})(-?[$€£]?\d[\d.,]*)\1(?![\w*])")
# As in "**2**nd" and "*un*likely": the second mark is no operator.
_EMPHASISED_START = re.compile(
    r"(?<![\w*)])(?:\*\*([^\s*](?:[^*\n]*[^\s*])?)\*\*|\*([^\W\d_]+)\*)(?=[\w(])"
)


def read_operators(text: str) -> str:
    """Read operators between values as words; other marks stay.

    These are ``*``, ``**``, ``^``, ``<``, ``>``, ``<=``, ``>=``, and the signs of multiplication,
    division and minus. ``+``, ``-``, ``/`` and ``=`` stay.

    Example::

        read_operators("*So* 7*8 is 56.")  # "*So* 7 times 8 is 56."
    """
    text = _EMPHASISED_NUMBER.sub(r"\2", text)
    text = _EMPHASISED_START.sub(lambda found: found[1] or found[2], text)
    text = _SIGN.sub(lambda found: f" {_SIGNS[found[1]]} ", text)
    text = _COMPARISON.sub(lambda found: f"{found[1]} {_RELATIONS[found[2]]} ", text)
    return _TIMES.sub(" times ", _POWER.sub(" to the power of ", text))
