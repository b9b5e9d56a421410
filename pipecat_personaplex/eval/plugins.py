"""Transcribers and judges by name: built in, or from the entry points of installed packages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import TypeVar

from pipecat_personaplex.errors import ConfigError

_Plugin = TypeVar("_Plugin")


def find_plugin(
    option: str, group: str, text: str, built_in: Mapping[str, Callable[[str], _Plugin]]
) -> _Plugin:
    """Make the plugin that an option names.

    Args:
        option: The option, for errors.
        group: Group of entry points; each is a function that takes the text after the colon.
        text: ``NAME`` or ``NAME:ARGUMENT``.
        built_in: The same kind of functions, by name.

    Raises:
        ConfigError: No plugin has the name, or a package that it needs is not installed.
    """
    name, _, argument = text.partition(":")
    if name in built_in:
        return built_in[name](argument)
    others = {point.name: point for point in entry_points(group=group)}
    if name not in others:
        known = ", ".join([*built_in, *sorted(others)])
        raise ConfigError(f"{option} {text}: {name!r} is unknown; it must be one of {known}")
    make: Callable[[str], _Plugin] = others[name].load()
    return make(argument)


def require_package(option: str, module: str, install: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        ConfigError: It is not installed; the message has the command that installs it.
    """
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise ConfigError(f"{option} needs {package}, which is not installed: {install}")
    return import_module(module)
