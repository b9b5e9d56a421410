"""``personaplex sizing``: callers, cost and failure domains of a fleet, on paper."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from pipecat_personaplex.cli.options import integers

EXAMPLES = """[bold]Examples[/bold]

personaplex sizing

personaplex sizing --card l4 --quantization int4 --gpus 1,16 --callers 500

personaplex sizing --card h100 --price 1.99 --mean-call 300 --refused 0.001 --markdown

The last line is JSON, for scripts: personaplex sizing | tail -n 1 | jq .fleets"""

_CARD = {"rich_help_panel": "Card"}
_CALLERS = {"rich_help_panel": "Callers"}


def sizing(
    gpus: Annotated[
        str, typer.Option(metavar="N,N,...", help="Fleets of this many GPUs; empty for none.")
    ] = "1,8,64",
    callers: Annotated[
        str,
        typer.Option(
            metavar="N,N,...",
            help="Also find the GPUs for this many calls at once; empty for none.",
        ),
    ] = "10000",
    domain: Annotated[
        int,
        typer.Option(
            min=1,
            help="GPUs that fail together, and are drained together: those of one machine. A fleet "
            "of two or more such domains keeps one as a spare.",
        ),
    ] = 8,
    card: Annotated[
        Literal["h200", "h100", "rtx4090", "l4"],
        typer.Option(help="The card, with its maker's numbers.", **_CARD),
    ] = "h100",
    quantization: Annotated[
        Literal["none", "int8", "fp8", "int4"],
        typer.Option(help="Format of the weights.", **_CARD),
    ] = "int8",
    kv_dtype: Annotated[
        Literal["bfloat16", "fp8"],
        typer.Option(help="Type of the keys and values.", **_CARD),
    ] = "fp8",
    price: Annotated[
        float | None,
        typer.Option(
            help="Dollars for an hour of one GPU.",
            show_default="an assumption for the card",
            **_CARD,
        ),
    ] = None,
    bandwidth_efficiency: Annotated[
        float,
        typer.Option(
            help="Part of the card's bandwidth that a step reaches.",
            **_CARD,
        ),
    ] = 0.7,
    mean_call: Annotated[
        float,
        typer.Option(help="Mean length of a call in seconds.", **_CALLERS),
    ] = 180.0,
    spread: Annotated[
        float,
        typer.Option(
            help="Standard deviation of the lengths' logarithm; 0 for exponential lengths.",
            **_CALLERS,
        ),
    ] = 1.0,
    personas: Annotated[
        int,
        typer.Option(
            help="Different personas; the k-th is used in proportion to 1 / k.",
            **_CALLERS,
        ),
    ] = 50,
    refused: Annotated[
        float,
        typer.Option(help="Accepted share of refused calls.", **_CALLERS),
    ] = 0.01,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds for which a caller waits for a free slot.",
            **_CALLERS,
        ),
    ] = 0.0,
    hours: Annotated[float, typer.Option(help="Simulated steady hours.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulation.")] = 0,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the fleets as a Markdown table.")
    ] = False,
) -> None:
    """Size a fleet on paper: how many callers, at what cost, and what a failure does to them.

    Nothing is measured. A card's callers follow from its memory and bandwidth, as the memory plan
    computes them. A simulation of calls that come and go then gives refused calls, waits for
    prompts and replays, the time to drain a failure domain, and what becomes of its calls when it
    fails. The output repeats every assumption.
    """
    from pipecat_personaplex.bench.fleet import CallModel
    from pipecat_personaplex.bench.sizing import SizingOptions, size
    from pipecat_personaplex.bench.sizing_table import describe, markdown_table

    options = SizingOptions(
        card=card,
        quantization=None if quantization == "none" else quantization,
        kv_dtype=kv_dtype,
        gpus=integers("--gpus", gpus, "1,8,64") if gpus else (),
        callers=integers("--callers", callers, "500,10000") if callers else (),
        domain=domain,
        refused=refused,
        calls=CallModel(mean_seconds=mean_call, sigma=spread, personas=personas, patience=patience),
        dollars=price,
        bandwidth_efficiency=bandwidth_efficiency,
        hours=hours,
        seed=seed,
    )
    report = size(options)
    typer.echo("\n".join(markdown_table(report) if markdown else describe(report)))
    typer.echo(json.dumps(report))
