"""An OpenAI-compatible server whose model follows rules, for a real ``OpenAILLMService``."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.llm.backend_llm_worker import BackendLLMWorker


@dataclass(frozen=True)
class Rule:
    """What the model does with a request whose last user line matches.

    Attributes:
        pattern: A regular expression, searched without regard to case.
        answer: What it writes; ``{result}`` is the tool's result. ``>>`` marks what is spoken.
        tool: A function to call first; None for none.
        arguments: Its arguments, as JSON or as they are (invalid JSON included).
        breaks: An error that ends the stream behind the answer; empty for none.
    """

    pattern: str
    answer: str
    tool: str | None = None
    arguments: dict[str, Any] | str = field(default_factory=dict)
    breaks: str = ""


class StubLLM:
    """The server. Its model answers what no rule matches with ``nothing``.

    Args:
        rules: The first that matches applies.
        delay: Seconds before the first token of each answer.

    Attributes:
        delay: May be changed while it runs.
        summary: The answer to requests that do not stream, as ``run_inference`` makes them.
        broken: If set, every request fails with this HTTP status.
        requests: Bodies of all requests so far.
        times: When each of them arrived, in monotonic seconds.
        written: When each answer without a tool call had been written.

    Example::

        async with StubLLM([Rule("open", ">> We are open until nine.")]) as llm:
            worker = llm.worker(tools=[])
    """

    def __init__(self, rules: Sequence[Rule] = (), delay: float = 0.0):
        self.rules = list(rules)
        self.delay = delay
        self.summary = "nothing"
        self.broken: int | None = None
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.written: list[float] = []
        self._port = 0

    async def __aenter__(self) -> StubLLM:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def asked(self) -> list[str]:
        """The last message of each request so far, if it is a user's."""
        last = [body["messages"][-1] for body in self.requests]
        return [_text(message) for message in last if message["role"] == "user"]

    def service(self) -> OpenAILLMService:
        return OpenAILLMService(
            api_key="none",
            base_url=self.url,
            settings=OpenAILLMService.Settings(model="stub"),
        )

    def worker(self, tools: Sequence[Any] = (), **options: Any) -> BackendLLMWorker:
        context = LLMContext(tools=list(tools)) if tools else LLMContext()
        return BackendLLMWorker(llm=self.service(), context=context, **options)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.times.append(time.monotonic())
        if self.broken is not None:
            return _closing(web.json_response({"error": {"message": "broken"}}, status=self.broken))
        await asyncio.sleep(self.delay)
        if not body.get("stream"):
            message = {"role": "assistant", "content": self.summary}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            completion = {"id": "1", "object": "chat.completion", "created": 1, "model": "stub"}
            return _closing(web.json_response(completion | {"choices": [choice]}))
        return await self._stream(request, body)

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        _closing(response)
        await response.prepare(request)

        async def send(delta: dict[str, Any], finish: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
            await response.write(f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n".encode())

        messages, tools = body["messages"], body.get("tools") or []
        chosen = None if messages[-1]["role"] == "tool" else await self.choose(messages, tools)
        if chosen is not None and tools:
            name, arguments = chosen
            call = {
                "index": 0,
                "id": f"call_{len(self.requests)}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            await send({"role": "assistant", "tool_calls": [call]})
            await send({}, "tool_calls")
        else:
            answer = await self.write(messages)
            for word in re.findall(r"\S+\s*", answer):
                await send({"role": "assistant", "content": word})
            rule = self._rule(messages)
            if rule is not None and rule.breaks:
                error = json.dumps({"error": {"message": rule.breaks}})
                await response.write(f"data: {error}\n\n".encode())
            await send({}, "stop")
            self.written.append(time.monotonic())
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _rule(self, messages: list[dict[str, Any]]) -> Rule | None:
        question = last_question(messages)
        if question is None:
            return None
        return next((rule for rule in self.rules if re.search(rule.pattern, question, re.I)), None)

    async def choose(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
    ) -> tuple[str, str] | None:
        """The tool that the model calls after these messages, and its arguments; None for none."""
        rule = self._rule(messages)
        if rule is None or rule.tool is None:
            return None
        given = rule.arguments
        return rule.tool, given if isinstance(given, str) else json.dumps(given)

    async def write(self, messages: list[dict[str, Any]]) -> str:
        """What the model writes after these messages."""
        rule = self._rule(messages)
        return "nothing" if rule is None else rule.answer.replace("{result}", tool_result(messages))


def last_question(messages: list[dict[str, Any]]) -> str | None:
    """The caller's newest words, as a request of the delegation or a message has them."""
    users = [_text(message) for message in messages if message["role"] == "user"]
    if not users:
        return None
    lines = [line for line in users[-1].splitlines() if line.startswith("USER: ")]
    return (lines[-1] if lines else users[-1]).removeprefix("USER: ")


def tool_result(messages: list[dict[str, Any]]) -> str:
    """The last message if it is the result of a tool, else an empty text."""
    return _text(messages[-1]) if messages[-1]["role"] == "tool" else ""


def _closing(response: web.StreamResponse) -> web.StreamResponse:
    """End the connection with the response: the client of a finished call closes none itself."""
    response.force_close()
    return response


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)
