"""Arithmetic for a language model: an expression in, a number out, and nothing else."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from bots.tool_problem import ToolProblem

_MAX_CHARACTERS = 200
_MAX_NODES = 100
# An integer power beyond this many bits would occupy the processor.
_MAX_BITS = 4_096
_MAX_DIGITS = 300  # to which a number may be rounded

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def _round(number: Any, digits: int | None = None) -> Any:
    # Python computes the power of ten of a negative number of digits.
    if digits is not None and abs(digits) > _MAX_DIGITS:
        raise OverflowError("there are too many digits")
    return round(number, digits)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in ("sqrt", "log", "log2", "log10", "exp", "floor")},
    **{name: getattr(math, name) for name in ("ceil", "sin", "cos", "tan", "radians", "degrees")},
    **{"abs": abs, "round": _round, "min": min, "max": max},
}
_CONSTANTS = {"pi": math.pi, "e": math.e}
_SIGNS = str.maketrans({"^": "**", "\u00d7": "*", "\u00f7": "/", "\u2212": "-"})


def calculate(expression: str) -> str:
    """The value of an expression, with at most twelve digits.

    Known are ``+ - * / // % ** ^``, brackets, ``pi``, ``e`` and a few functions.

    Raises:
        ToolProblem: The expression has another part, is too large, or has no value.

    Example::

        calculate("2 * (3 + 4)")        # "14"
    """
    if len(expression) > _MAX_CHARACTERS:
        raise ToolProblem(f"The expression is longer than {_MAX_CHARACTERS} characters.")
    try:
        tree = ast.parse(expression.strip().translate(_SIGNS), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolProblem(f"{expression!r} is no arithmetic expression.") from None
    if sum(1 for _ in ast.walk(tree)) > _MAX_NODES:
        raise ToolProblem(f"The expression has more than {_MAX_NODES} parts.")
    try:
        return _shown(_value(tree.body))
    except (ZeroDivisionError, OverflowError, ValueError, TypeError) as error:
        raise ToolProblem(f"{expression!r} has no value: {error}.") from None


def _value(node: ast.expr) -> Any:
    value: Any
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            pass
        case ast.Name(id=name) if name in _CONSTANTS:
            value = _CONSTANTS[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            value = _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            value = _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            value = _BINARY[type(op)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            value = _FUNCTIONS[name](*map(_value, args))
        case _:
            known = ", ".join([*_FUNCTIONS, *_CONSTANTS])
            raise ToolProblem(
                f"{ast.unparse(node)!r} cannot be calculated. Known are + - * / // % **, brackets, "
                f"numbers and {known}."
            )
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise OverflowError("the number is too large")
    return value


def _power(base: Any, exponent: Any) -> Any:
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and base.bit_length() * abs(exponent) > _MAX_BITS
    ):
        raise OverflowError("the number is too large")
    return base**exponent


def _shown(value: Any) -> str:
    if isinstance(value, complex) or not math.isfinite(value):
        raise ValueError("the result is not a real number")
    if isinstance(value, int) and abs(value) < 10**15:
        return str(value)
    return f"{value:.12g}"
