"""``personaplex keys``: make API keys for the clients of a server."""

from __future__ import annotations

from typing import Annotated

import typer

keys = typer.Typer(no_args_is_help=True, help="Make API keys for the clients of a server.")


@keys.command(
    "new",
    epilog="""[bold]Examples[/bold]

personaplex keys new my-bot >> keys.txt

personaplex keys new trial --max-sessions 2 >> keys.txt

personaplex serve --api-key-file keys.txt""",
)
def new(
    name: Annotated[str, typer.Argument(help="The name of the client: letters, digits and . _ -")],
    max_sessions: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=999_999,
            help="Sessions that this key may have open at once, over all its connections.",
            show_default="no limit",
        ),
    ] = None,
) -> None:
    """Make an API key.

    Standard output gets the line for the key file, which holds only a hash of the key. Standard
    error gets the key itself, which cannot be shown again.
    """
    from pipecat_personaplex.server.auth import new_key

    key, line = new_key(name, max_sessions)
    typer.echo(line)
    typer.echo(f"the key of {name}, which is shown only now: {key}", err=True)
