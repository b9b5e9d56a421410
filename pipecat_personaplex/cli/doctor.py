"""``personaplex doctor``: says what works on this machine, and how to cure what does not."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from pipecat_personaplex.errors import PersonaPlexError

EXAMPLES = """[bold]Examples[/bold]

personaplex doctor

personaplex doctor --json"""

_MARKS = {"ok": "[green]ok     [/]", "note": "[yellow]note   [/]", "problem": "[red]problem[/]"}


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON array instead of lines.")
    ] = False,
) -> None:
    """Check this machine: Python, PyTorch, GPU, memory, libraries, ports, weights, speed.

    Each line is ok; note, if something works only in part; or problem. The exit code is 1 if there
    is a problem.
    """
    from rich.console import Console
    from rich.markup import escape

    from pipecat_personaplex.cli.doctor_checks import findings

    console = Console(soft_wrap=True, highlight=False)
    found = []
    for finding in findings():
        found.append(finding)
        if not as_json:
            console.print(
                f"{_MARKS[finding.status]} {finding.subject:<11} {escape(finding.detail)}"
            )
            if finding.cure:
                console.print(f"                    -> {escape(finding.cure)}")
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    problems = [finding.subject for finding in found if finding.status == "problem"]
    if problems:
        raise PersonaPlexError(f"this needs a cure: {', '.join(problems)}")
