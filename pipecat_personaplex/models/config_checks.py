"""Checks of the values of a ``config.json``, which may be anything that JSON can express."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipecat_personaplex.errors import ConfigError

_MAX_LAYERS = 512
_MAX_SIZE = 1 << 20
"""Largest width, vocabulary and context: some thirty times those of the released model."""


def reject_unknown(section: str, values: Mapping[str, Any], known: set[str]) -> None:
    """Check that a section has no other keys than these.

    Raises:
        ConfigError: It has.
    """
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"config.json: unknown {section} key {unknown[0][:40]!r}; known are: "
            + ", ".join(sorted(known))
        )


def require_fixed(section: str, values: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Check that keys of which one value is implemented have that value, or are absent.

    Raises:
        ConfigError: A key has another value.
    """
    for key, expected in fixed.items():
        if key in values and values[key] != expected:
            raise ConfigError(
                f"config.json: {section}.{key} is {shown(values[key])}; only {expected!r} is "
                "implemented"
            )


def require_in_range(config: Any, section: str) -> None:
    """Refuse numbers that are not positive, or so large that building the model takes memory.

    Args:
        config: A dataclass whose fields are numbers or tuples of numbers.
        section: Its section of the file, for the error message.

    Raises:
        ConfigError: A number is out of its range.
    """
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        most = _MAX_LAYERS if spec.name.endswith("num_layers") else _MAX_SIZE
        for number in value if isinstance(value, tuple) else (value,):
            if not 0 < number <= most:  # also not a number
                raise ConfigError(
                    f"config.json: {section}.{spec.name} must be above 0 and at most {most}, not "
                    f"{shown(value)}"
                )


def shown(value: object) -> str:
    """A value for an error message, which must stay one short line."""
    if isinstance(value, int) and abs(value) > _MAX_SIZE**2:
        return "a number of many digits"
    return repr(value)[:100]


def typed(cls: type[Any], section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``values`` that are fields of ``cls``.

    Raises:
        ConfigError: A value has not the type of the field's default.
    """
    chosen = {}
    for spec in dataclasses.fields(cls):
        if spec.name not in values:
            continue
        value, default = values[spec.name], spec.default
        if isinstance(default, tuple):
            ok = isinstance(value, list | tuple) and all(type(v) is int for v in value)
            value = tuple(value) if ok else value
        elif isinstance(default, float):
            ok = type(value) in (int, float)
        else:
            ok = type(value) is type(default)
        if not ok:
            expected = (
                "a list of integers" if isinstance(default, tuple) else type(default).__name__
            )
            raise ConfigError(
                f"config.json: {section}.{spec.name} must be {expected}: {shown(value)}"
            )
        chosen[spec.name] = value
    return chosen
