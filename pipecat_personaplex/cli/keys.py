"""``personaplex keys``: keys for the clients of a server."""

from __future__ import annotations

from typing import Annotated

import typer

keys = typer.Typer(no_args_is_help=True, help="Make keys for the clients of a server.")


@keys.command(
    "new",
    epilog="""[bold]Examples[/bold]

personaplex keys new my-bot >> keys.txt

personaplex keys new trial --max-sessions 2 >> keys.txt

personaplex serve --api-key-file keys.txt""",
)
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is: letters, digits and . _ -")],
    max_sessions: Annotated[
        int | None,
        typer.Option(
            min=1, max=999_999, help="Sessions at once, on all connections; no limit by default."
        ),
    ] = None,
) -> None:
    """Make a key.

    The key file's line, which has only the key's hash, goes to standard output. The key itself is
    shown on standard error, this once.
    """
    from pipecat_personaplex.server.auth import new_key

    key, line = new_key(name, max_sessions)
    typer.echo(line)
    typer.echo(f"the key of {name}, which is shown only now: {key}", err=True)
