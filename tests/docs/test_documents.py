"""Code blocks of README and docs run, on the small checkpoint in place of the 7B."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from pipecat.frames.frames import EndFrame, TTSSpeakFrame
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_response_universal import LLMAssistantAggregator
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner
from typer.core import TyperGroup

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.cli import main
from pipecat_personaplex.cli.commands import app
from tests.golden_data import CHECKPOINT, VOICE_SAMPLE
from tests.helpers.llm import Rule, StubLLM
from tests.helpers.logs import logging_restored
from tests.helpers.servers import RunningServer
from tests.helpers.transports import FakeTransport

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = "nvidia/personaplex-7b-v1"
# Blocks that other tests run: what this very run is made of; what takes minutes, in tests/bench
# and tests/eval; what ends with its user, in tests/cli/test_serve.py and test_talk.py; commands
# of the bots, in tests/bots/test_bots_documentation.py.
ELSEWHERE = (
    *("make ", "pip install", "personaplex bench", "personaplex eval", "personaplex serve"),
    *("python -m bots.", "sqlite3 "),
)


def blocks(language: str) -> list[str]:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)
    return [block for block in found if not block.startswith(ELSEWHERE)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("caller.wav", "owen.wav"):
        shutil.copy(VOICE_SAMPLE, tmp_path / name)
    return tmp_path


@pytest.fixture
def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], str]]:
    """Run a program in ``folder``, in this process; returns what it prints."""
    monkeypatch.chdir(folder)

    def execute(code: str) -> str:
        exec(compile(code, "block", "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out

    with logging_restored():
        yield execute


def test_there_are_blocks_to_run() -> None:
    assert len(blocks("python")) == 9
    assert len(blocks("bash")) >= 2


def commands() -> list[str]:
    """Each line of a code block that runs ``personaplex``, from there on."""
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    found = "".join(re.findall(r"^```(?:bash|text)\n(.*?)^```", text, re.S | re.M))
    lines = found.replace("\\\n", " ")
    return re.findall(r"^ *(?:[A-Z_]+=\S+ )*personaplex ([^#>\n]*)", lines, re.M)


def test_every_command_has_options_that_exist() -> None:
    assert len(commands()) > 25
    for line in commands():
        command: Any = typer.main.get_command(app)
        context, words = None, shlex.split(line)
        while True:
            context = command.make_context("personaplex", words, parent=context)
            if not isinstance(command, TyperGroup):
                break
            words = [*context._protected_args, *context.args]
            _, command, words = command.resolve_command(context, words)


def the_block(part: str) -> str:
    [block] = [block for block in blocks("python") if part in block]
    return block


def test_the_engine_in_a_program(run: Callable[[str], str]) -> None:
    out = run(the_block("engine.converse(").replace(MODEL, str(CHECKPOINT)))
    assert "voices: NATF2, NATM1" in out
    assert "ended: closed" in out
    assert "(24000,)" in out
    frames = [line.split()[0] for line in out.splitlines() if line.endswith("(1920,)")]
    assert frames == ["0", "1", "2", "3", "4"], "the frames of the call are printed"


def test_the_engine_elsewhere(run: Callable[[str], str]) -> None:
    config = EngineConfig(device="cpu", dtype="float32")
    servers = [RunningServer(Engine.load(CHECKPOINT, config)) for _ in range(2)]
    with servers[0] as one, servers[1] as other:
        code = the_block("RemoteEngine").replace("ws://engine-a:8998", one.ws_url)
        out = run(code.replace("ws://engine-b:8998", other.ws_url))
    assert "voices: NATF2, NATM1" in out


def test_steering_a_session(run: Callable[[str], str]) -> None:
    out = run(the_block("session.update_prompt("))
    assert "said 9 of 9 words" in out
    assert out.endswith("new prompt: in effect\n")


def test_changing_the_settings_of_a_call(run: Callable[[str], str]) -> None:
    assert run(the_block("the voice is now")) == "the voice is now NATM1\n"


def test_steering_a_call_of_the_service(run: Callable[[str], str]) -> None:
    out = run(the_block("agent.say("))
    spoken = ["Hello, this is Anna. What can I get you?", "Thank you, bye bye!"]
    assert [line[8:] for line in out.splitlines() if line.startswith("spoken: ")] == spoken
    assert "closes in ten minutes" in out and "interrupted" not in out


@pytest.mark.realtime
async def test_a_backend_behind_the_voice(folder: Path) -> None:
    rule = Rule("close", ">> We are open until nine tonight.", "opening_hours", {"day": "today"})
    async with StubLLM([rule]) as llm:
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            the_block("Delegation("),
            cwd=folder,
            env=os.environ | {"OPENAI_BASE_URL": llm.url},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(program.communicate(b"When do you close?\n"), 60)
        assert program.returncode == 0
        assert "agent: We are open until nine tonight." in out.decode()
        assert "nine tonight" in str(llm.requests[-1]["messages"])  # the tool's result


@pytest.mark.realtime
async def test_the_pipeline_of_the_integration_page() -> None:
    """It runs, and what the agent says reaches the context."""
    code = the_block("LLMContextAggregatorPair(LLMContext())").replace("NATF2", "NATM1")
    names: dict[str, Any] = {}
    exec(code, names)
    transport = FakeTransport(
        TransportParams(audio_out_enabled=True, audio_out_sample_rate=24_000), lambda at, pcm: None
    )
    with Engine.load("nano", EngineConfig(device="cpu", max_sessions=1)) as engine:
        pipeline = names["pipeline"](engine, transport)
        worker = PipelineWorker(pipeline)
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await worker.queue_frames([TTSSpeakFrame("Hello there."), EndFrame()])
        await asyncio.wait_for(runner.run(), 60)
    [aggregator] = [p for p in pipeline.processors if isinstance(p, LLMAssistantAggregator)]
    [message] = aggregator.context.messages
    assert message == {"role": "assistant", "content": "Hello there."}


def test_the_readme_shows_the_minimal_bot() -> None:
    """tests/bots/test_minimal.py runs it."""
    assert the_block("create_transport") == (ROOT / "bots" / "minimal.py").read_text()


@pytest.mark.skipif(find_spec("triton") is None, reason="without it a card keeps more")
def test_callers_that_fit(run: Callable[[str], str]) -> None:
    """The table's last column is what the code below it prints."""
    out = run(the_block("plan_engine"))
    printed = re.findall(r"^([\d.]+) GiB free: (\d+) callers$", out, re.M)
    document = (ROOT / "docs" / "performance.md").read_text().partition("### Small cards")[0]
    table = re.findall(r"^\|.*\| ([\d.]+) GiB \|.*\| (\d+)(?:,[^|]*)? \|$", document, re.M)
    assert len(printed) == 5 and table == printed


# The shell reads a block and stores the arguments of each command, which then runs in this process.
SHELL = "personaplex() { printf '%s\\0' \"$@\" '' >>commands; }\n"


@pytest.mark.parametrize("block", blocks("bash"))
def test_shell(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    block = block.replace(MODEL, str(CHECKPOINT)).replace("--frames 300", "--frames 30")
    subprocess.run(["bash", "-euo", "pipefail", "-c", SHELL + block], check=True)
    commands = (folder / "commands").read_text().removesuffix("\0\0").split("\0\0")
    with logging_restored():
        assert [main(command.split("\0")) for command in commands] == [0] * len(commands)
    given = {"caller.wav", "owen.wav", "steering.txt", "commands"}
    made = {path.name for path in folder.iterdir()} - given
    continued = {"monday.wav", "lesson.call", "tuesday.wav"}
    assert made in (
        {"agent.wav", "agent.json"},
        {"agent.wav", "agent.json", "both.wav"},
        {"owen.pt"},
        continued,
        set(),
    )
