"""One HTML page for a run: scores, distributions, and every call in two lanes. No network."""

from __future__ import annotations

import html
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipecat_personaplex.eval.run_files import replacing
from pipecat_personaplex.eval.run_folder import RunFolder
from pipecat_personaplex.eval.score_table import Table, label, make_table

_TEMPLATE = Path(__file__).with_name("page_template.html")
SECONDS = ("latency", "offset", "stop", "response")
"""Metrics in seconds, whose distributions are shown."""


def write_page(run: RunFolder, path: Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        run: A run with scores.
        path: The file; ``page.html`` in the run's folder if not given. Its links to the agent's
            audio are relative.

    Returns:
        The file.

    Raises:
        UserError: The run has no scores, or a file of it is damaged.
    """
    content = run.newest_scores()
    table = make_table([run])
    path = path or run.path / "page.html"
    histograms = [(label(key), values) for key, values in distributions(content).items()]
    audio = _relative_address(run.path / "audio", path.parent)
    data = {"calls": _calls(run, content, audio), "histograms": histograms}
    fields = {
        "title": f"{run.settings['title']}: {run.settings['model']}, {run.settings['voice']}",
        "description": _items(table.title),
        "notes": _items(table.notes),
        "table": _table(table),
    }
    page = _TEMPLATE.read_text(encoding="utf-8")
    for name, value in fields.items():
        page = page.replace(f"{{{{{name}}}}}", html.escape(value) if name == "title" else value)
    # "</" would end the script element.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    page = page.replace("{{data}}", text)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _relative_address(target: Path, folder: Path) -> str:
    """The address of a path, as seen from a page in a folder; absolute on another Windows drive."""
    try:
        return quote(Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix())
    except ValueError:
        return target.resolve().as_uri()


def distributions(content: Mapping[str, Any]) -> dict[str, list[float]]:
    """All values in seconds by score, such as ``turn/turn_end.latency``.

    They are those of the fixed rules, if the scores have them.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for record in content["records"]:
        for metric, value in record.get("fixed", record.get("compat", [])):
            if metric.rpartition(".")[2] in SECONDS:
                values[f"{record['group']}/{metric}"].append(value)
    return dict(values)


def _calls(run: RunFolder, content: Mapping[str, Any], audio: str) -> list[dict[str, Any]]:
    calls = {(call.id, call.seed): call for call in run.calls() if not call.error}
    result = []
    for record in content["records"]:
        call = calls.get((record["id"], record["seed"]))
        if call is None:  # its line was deleted, to run it again
            continue
        result.append(
            {
                "id": call.id,
                "seed": call.seed,
                "group": call.group,
                "seconds": call.seconds,
                "caller": call.caller,
                "events": [asdict(event) for event in call.events],
                "words": record["words"],
                "spans": record["spans"],
                "scores": record.get("fixed", record.get("compat", [])),
                "audio": f"{audio}/{call.seed}/{quote(call.id)}.flac",
            }
        )
    return result


def _items(lines: Sequence[str]) -> str:
    return "".join(f"<li>{html.escape(line)}</li>" for line in lines)


def _table(table: Table) -> str:
    head = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in table.header)
    rows = []
    for first, *rest in table.rows:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        rows.append(f"<tr><th scope='row'>{html.escape(first)}</th>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
