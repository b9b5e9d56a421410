"""Print what a package depends on, one requirement a line, for a layer without the package itself.

python dependencies.py pyproject.toml server,ray
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def dependencies(pyproject: Path, extras: list[str]) -> list[str]:
    """Those of the package, and those of its extras.

    Args:
        pyproject: The package's ``pyproject.toml``.
        extras: Names of optional dependencies.

    Raises:
        SystemExit: There is no such extra.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    known: dict[str, list[str]] = project.get("optional-dependencies", {})
    own = re.compile(rf"{re.escape(project['name'])}\[(.*)\]")
    found: list[str] = list(project["dependencies"])
    for extra in extras:
        if extra not in known:
            raise SystemExit(f"error: no extra {extra!r}; there are {', '.join(sorted(known))}")
        for line in known[extra]:
            # An extra made of others; as a requirement it would bring the package itself.
            others = own.fullmatch(line)
            found += dependencies(pyproject, others[1].split(",")) if others else [line]
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    names = [name for name in sys.argv[2].split(",") if name]
    print("\n".join(dependencies(Path(sys.argv[1]), names)))
