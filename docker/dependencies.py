"""Print what a package depends on, one requirement a line, for a layer without the package itself.

python dependencies.py pyproject.toml server,ray
"""

from __future__ import annotations

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
    found: list[str] = list(project["dependencies"])
    for extra in extras:
        if extra not in known:
            raise SystemExit(f"error: no extra {extra!r}; there are {', '.join(sorted(known))}")
        found += known[extra]
    return found


if __name__ == "__main__":
    names = [name for name in sys.argv[2].split(",") if name]
    print("\n".join(dependencies(Path(sys.argv[1]), names)))
