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
# A number with its unit, or a variable; neither the name of a tag nor its attribute. It is matched
# as a whole: else each part of "1.1.1..." would be tried, in quadratic time.
_COMPARED = r"(?<![\w</=])(?<!\d[.,])(?:-?[$€£]?\d[\d.,]*+(?:[ \t]?(?:%|°?[A-Za-z]{1,2}\b))?|[a-z])"
_COMPARISON = re.compile(rf"({_COMPARED})[ \t]*([<>]=?)[ \t]*(?=-?[$€£]?\d)")
_RELATIONS = {
    "<": "is less than",
    ">": "is greater than",
    "<=": "is at most",
    ">=": "is at least",
}
# Between spaces. These signs have no other meaning between two words.
_PLUS_OR_IS = re.compile(r"(?<=[\w)%*`])[ \t]+([+=])[ \t]+(?=[-\w($€£*`])")
# A dash may also stand in a range and a slash in a date: they are operators where "=" follows or
# precedes, with values and operators in between.
_TERM = (
    r"\({0,3}[-+]?[$€£]?"
    r"(?:\d++(?:[.,]\d++)*+(?:[ \t]?(?:%|°?[A-Za-z]{1,2}\b))?|\b[A-Za-z]\b)\){0,3}"
)
_FORMULA = re.compile(rf"(?<![\d.,]){_TERM}(?:[ \t]*[-+*/^=\u2013{''.join(_SIGNS)}][ \t]*{_TERM})+")
_MINUS_OR_OVER = re.compile(r"[ \t]+([-\u2013/])[ \t]+")
_SPACED = {"+": "plus", "=": "is", "-": "minus", "\N{EN DASH}": "minus", "/": "divided by"}
_EMPHASISED_NUMBER = re.compile(r"(?<![\w*)])(\*{1,3})(-?[$€£]?\d[\d.,]*)\1(?![\w*])")
# As in "**2**nd" and "*un*likely": the second mark is no operator.
_EMPHASISED_START = re.compile(
    r"(?<![\w*)])(?:\*\*([^\s*](?:[^*\n]*[^\s*])?)\*\*|\*([^\W\d_]+)\*)(?=[\w(])"
)


def read_operators(text: str) -> str:
    """Read operators between values as words; other marks stay.

    These are ``*``, ``**``, ``^``, ``<``, ``>``, ``<=``, ``>=``, and the signs of multiplication,
    division and minus; with a space on both sides also ``+`` and ``=`` and, in a formula with
    ``=``, ``-`` and ``/``. Without spaces, ``+``, ``-``, ``/`` and ``=`` stay.

    Example::

        read_operators("*So* 7*8 - 6 = 50.")  # "*So* 7 times 8 minus 6 is 50."
    """
    text = _EMPHASISED_NUMBER.sub(r"\2", text)
    text = _EMPHASISED_START.sub(lambda found: found[1] or found[2], text)
    text = _FORMULA.sub(_read_formula, text)
    text = _PLUS_OR_IS.sub(_read_spaced, text)
    text = _SIGN.sub(lambda found: f" {_SIGNS[found[1]]} ", text)
    text = _COMPARISON.sub(lambda found: f"{found[1]} {_RELATIONS[found[2]]} ", text)
    return _TIMES.sub(" times ", _POWER.sub(" to the power of ", text))


def _read_formula(found: re.Match[str]) -> str:
    return _MINUS_OR_OVER.sub(_read_spaced, found[0]) if "=" in found[0] else found[0]


def _read_spaced(found: re.Match[str]) -> str:
    return f" {_SPACED[found[1]]} "
