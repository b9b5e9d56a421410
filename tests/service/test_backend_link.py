"""Pipecat's protocol between a front end and a backend worker, as far as delegation needs it.

The private names are imported in one module. This is their contract; ``make pipecat`` checks it
with another release.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path

import pytest
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.workers.llm import backend_llm_worker
from pipecat.workers.runner import WorkerRunner

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.service.delegation import backend_link
from pipecat_personaplex.service.delegation.backend_link import (
    BackendEvent,
    BackendIdle,
    BackendLink,
    BackendOutput,
    BackendToolCall,
    BackendUnavailable,
    transcript_request,
)
from tests.helpers.llm import Rule, StubLLM

PACKAGE = Path(backend_link.__file__).parents[1]
PRIVATE = ("_BackendSession", "_render_transcript_request")


def source() -> str:
    return inspect.getsource(backend_llm_worker)


def test_private_names_of_the_worker_are_imported_in_one_module() -> None:
    using = {
        path.name
        for path in PACKAGE.rglob("*.py")
        if any(re.search(rf"\b{name}\b", path.read_text()) for name in PRIVATE)
    }
    assert using == {"backend_link.py"}


def test_the_release_has_the_signatures_that_the_link_uses() -> None:
    names: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(source())):
        if isinstance(node, ast.ClassDef) and node.name == "_BackendSession":
            for item in node.body:
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                    arguments = item.args
                    names[item.name] = [a.arg for a in arguments.args + arguments.kwonlyargs]
        elif isinstance(node, ast.FunctionDef) and node.name == "_render_transcript_request":
            names[node.name] = [a.arg for a in node.args.args + node.args.kwonlyargs]
    assert names["__init__"] == ["self", "worker", "backend_name", "timeout_secs"]
    assert names["send"] == ["self", "request"]
    assert {"__aenter__", "__aexit__", "__anext__"} <= names.keys()
    assert names["_render_transcript_request"] == ["conversation", "instruction", "first"]


def test_a_release_without_the_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_link, "_missing", ImportError("cannot import _BackendSession"))
    with pytest.raises(ConfigError, match=r"Pipecat 1\.13 or 1\.14.*install pipecat-ai<1\.15"):
        BackendLink(FrameProcessor(), "clerk", None, None)  # type: ignore[arg-type]


def test_a_request_shows_both_sides_and_asks_for_the_mark() -> None:
    messages = [
        {"role": "developer", "content": "The caller is calm."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "When do you close?"},
    ]
    request = transcript_request(messages, first=True)  # type: ignore[arg-type]
    assert "ASSISTANT: Hello.\nUSER: When do you close?" in request
    assert ">>" in request and "calm" not in request
    assert request != transcript_request(messages, first=False)  # type: ignore[arg-type]


class Front(FrameProcessor):
    """A processor that is attached to a backend."""

    def __init__(self, backend: backend_llm_worker.BackendLLMWorker | str):
        super().__init__()
        self.events: list[BackendEvent] = []
        self.lost: list[str] = []
        self.backend = BackendLink(self, backend, self.take, self.lost.append)

    async def take(self, event: BackendEvent) -> None:
        self.events.append(event)

    async def setup(self, setup) -> None:
        await super().setup(setup)
        await self.backend.open()

    async def cleanup(self) -> None:
        await self.backend.close()
        await super().cleanup()

    async def process_frame(self, frame, direction) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)

    async def until(self, kind: type[BackendEvent], count: int = 1) -> None:
        async with asyncio.timeout(10):
            while sum(isinstance(event, kind) for event in self.events) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


class Running:
    def __init__(self, front: Front):
        self.worker = PipelineWorker(
            Pipeline([front]), cancel_on_idle_timeout=False, enable_rtvi=False
        )

    async def __aenter__(self) -> None:
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self.worker)
        self.run = asyncio.create_task(runner.run())

    async def __aexit__(self, *_: object) -> None:
        await self.worker.cancel()
        await asyncio.wait_for(self.run, 10)


async def look_up(params, day: str) -> None:
    """Find out when we are open.

    Args:
        day: The day.
    """
    await params.result_callback({"until": "nine"})


@pytest.mark.realtime
async def test_events_of_a_real_worker_arrive_in_order_and_end_with_idle() -> None:
    rules = [Rule("close", "checking\n>> Until {result}.", "look_up", {"day": "today"})]
    async with StubLLM(rules) as llm:
        front = Front(llm.worker([look_up]))
        async with Running(front):
            assert await front.backend.send("USER: when do you close?") is True
            await front.until(BackendIdle)
            kinds = [type(event) for event in front.events]
            phases = [e.phase for e in front.events if isinstance(e, BackendToolCall)]
            assert phases == ["started", "in_progress", "result"]
            outputs = [e for e in front.events if isinstance(e, BackendOutput)]
            assert [(e.text, e.prefers_spoken) for e in outputs] == [
                ("checking", False),
                ('Until {"until": "nine"}.', True),
            ]
            assert kinds[-1] is BackendIdle and kinds.count(BackendIdle) == 1

            # Attached again, the worker still has its conversation.
            await front.backend.attach_again()
            await front.backend.send("USER: hello")
            await front.until(BackendIdle, 2)
            assert "when do you close" in str(llm.requests[-1]["messages"])
            assert not front.lost


@pytest.mark.realtime
async def test_a_backend_that_is_not_there_takes_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend_link, "ATTACH_SECONDS", 0.3)
    front = Front("clerk")
    async with Running(front):
        with pytest.raises(BackendUnavailable, match=r"clerk took no request"):
            await front.backend.send("hello")


@pytest.mark.realtime
async def test_a_backend_that_serves_another_call_takes_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with StubLLM([Rule("first", ">> For the first."), Rule("second", ">> Secret.")]) as llm:
        clerk = llm.worker()
        first, second = Front(clerk.name), Front(clerk.name)
        runner = WorkerRunner(handle_sigint=False)
        for front in (first, second):
            await runner.add_workers(
                PipelineWorker(Pipeline([front]), cancel_on_idle_timeout=False, enable_rtvi=False)
            )
        await runner.add_workers(clerk)
        running = asyncio.create_task(runner.run())
        try:
            await first.backend.send("USER: first")
            # The second call asks again every second, and is refused each time.
            monkeypatch.setattr(backend_link, "ATTACH_SECONDS", 1.5)
            with pytest.raises(BackendUnavailable):
                await second.backend.send("USER: second")
            await first.until(BackendOutput)
            assert [each.text for each in first.events if isinstance(each, BackendOutput)] == [
                "For the first."
            ]
            assert not second.events and "already attached" in second.lost[0]
            assert len(second.lost) == 1

            await first.backend.close()
            await second.backend.send("USER: second")
            await second.until(BackendOutput)
            assert len(llm.requests) == 2
        finally:
            await runner.cancel()
            await asyncio.wait_for(running, 10)


def test_events_and_phases_are_those_that_the_delegation_knows() -> None:
    hints = inspect.get_annotations(backend_llm_worker.BackendToolCall, eval_str=True)
    assert set(hints["phase"].__args__) == {"started", "in_progress", "result", "cancelled"}
