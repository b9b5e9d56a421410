"""The options of a backend, and bots with a backend as processes."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bots.backends import add_backend_options, choose_backend
from bots.order_window.menu import read_menu
from bots.order_window.store import OrderStore
from pipecat_personaplex.errors import ConfigError
from tests.helpers.bots import BotProcess, Messages, receive_audio, run_bot, webrtc_caller
from tests.helpers.llm import Rule, StubLLM

SCRIPT = ("--stt", "tests.bots.my_stt:create_order")


def options(*arguments: str, stt: str = "whisper") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_backend_options(parser)
    args = parser.parse_args(arguments)
    args.stt = stt
    return args


async def patiently(
    messages: Messages, accept: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Wait for a message for a minute: the model may be slow beside other tests."""
    async with asyncio.timeout(60):
        while True:
            with suppress(TimeoutError):
                return await messages.until(accept)


def connection(llm: StubLLM) -> tuple[str, ...]:
    return ("--backend", "openai", "--backend-url", llm.url, "--backend-model", "stub")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


class TestOptions:
    def test_none_is_the_default(self) -> None:
        assert choose_backend(options(stt="none")) is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--backend", "oracle"], "must be one of none, openai, anthropic, ollama"),
            (["--backend-model", "m"], "--backend-url and --backend-model need --backend"),
            (["--backend-url", "http://a"], "--backend-url and --backend-model need --backend"),
            (["--backend", "openai"], "needs OPENAI_API_KEY"),
            (["--backend", "anthropic"], "needs ANTHROPIC_API_KEY"),
            (["--backend", "ollama"], "--backend ollama needs --backend-model here"),
            (["--backend", "openai", "--backend-url", "http://a"], "needs --backend-model here"),
            (
                ["--backend", "openai", "--backend-url", "a:80", "--backend-model", "m"],
                "must be like http://127.0.0.1:8000/v1",
            ),
            (["--backend", "anthropic", "--backend-url", "http://a"], "accepts no --backend-url"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, arguments: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as refused:
            choose_backend(options(*arguments))
        assert "\n" not in str(refused.value)

    def test_a_backend_needs_the_callers_words(self) -> None:
        with pytest.raises(ConfigError, match="needs --stt whisper"):
            choose_backend(options("--backend", "ollama", "--backend-model", "m", stt="none"))

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
        monkeypatch.setitem(sys.modules, "pipecat.services.anthropic.llm", None)
        with pytest.raises(ConfigError, match=r"pip install 'pipecat-ai\[anthropic\]'"):
            choose_backend(options("--backend", "anthropic"))

    @pytest.mark.parametrize(
        ("arguments", "service", "model", "address"),
        [
            (["--backend", "openai"], "OpenAILLMService", None, "https://api.openai.com/v1/"),
            (
                ["--backend", "openai", "--backend-url", "http://a/v1", "--backend-model", "m"],
                "OpenAILLMService",
                "m",
                "http://a/v1/",
            ),
            (
                ["--backend", "ollama", "--backend-model", "qwen3"],
                "OLLamaLLMService",
                "qwen3",
                "http://localhost:11434/v1/",
            ),
            (
                ["--backend", "anthropic", "--backend-model", "claude"],
                "AnthropicLLMService",
                "claude",
                "https://api.anthropic.com",
            ),
        ],
    )
    async def test_each_provider_gets_its_service_and_one_client(
        self,
        arguments: list[str],
        service: str,
        model: str | None,
        address: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if "anthropic" in arguments:
            pytest.importorskip("anthropic")
        monkeypatch.setenv("OPENAI_API_KEY", "key of a test")
        monkeypatch.setenv("ANTHROPIC_API_KEY", "key of a test")
        backends = choose_backend(options(*arguments))
        assert backends is not None
        first: Any = backends.create("You calculate.", []).llm
        second: Any = backends.create("You calculate.", []).llm
        assert type(first).__name__ == service and first is not second
        assert model in (None, first._settings.model)
        assert str(first._settings.system_instruction).startswith("You calculate.")
        assert first._client is second._client, "calls share connections"
        assert str(first._client.base_url) == address
        await backends.close()


@pytest.mark.realtime
async def test_the_order_window_as_a_process(tmp_path: Path) -> None:
    """A browser's call: the order grows on the caller's page and on /orders; then receipts."""
    path = tmp_path / "orders.db"
    earlier = OrderStore(path, read_menu())
    earlier.add("earlier", "1", "tea", 1)
    earlier.place("earlier")
    earlier.close()
    rules = [Rule("two spicy", ">> Two spicy.", "add_to_order", {"item": "spicy", "quantity": 2})]
    files = ("--orders", str(path), "--records", str(tmp_path / "calls"))
    calls: list[Messages] = []
    async with StubLLM(rules) as llm:
        arguments = ("--model", "nano", *SCRIPT, *connection(llm), *files)
        with BotProcess("bots.drive_thru", *arguments) as bot:
            async with aiohttp.ClientSession(bot.url) as http, webrtc_caller(calls) as (peer, body):
                async with http.get("/orders") as page:
                    html = await page.text()
                    nonce = page.headers["content-security-policy"].split("'nonce-")[1][:22]
                assert f'<script nonce="{nonce}' in html
                async with http.post("/api/offer", json=body) as response:
                    await receive_audio(peer, await response.json())
                [messages] = calls
                about = {"library": "tests", "library_version": "1", "platform": "python"}
                await messages.send("client-ready", "0", {"version": "1.0.0", "about": about})
                heard = await patiently(messages, lambda each: each["type"] == "user-transcription")
                assert heard["data"]["text"] == "Two spicy, please."
                shown = await patiently(messages, lambda each: each["type"] == "server-message")
                assert shown["data"]["type"] == "order"
                assert shown["data"]["order"]["total"] == "$20.50"
                async with http.get("/orders/data") as data:
                    orders = await data.json()
            assert bot.stop()
        assert "Traceback" not in bot.log
    assert orders["restaurant"] == "Jerusalem Shakshuka"
    assert [order["state"] for order in orders["orders"]] == ["open", "placed"]
    assert orders["orders"][0] == shown["data"]["order"]

    printed = run_bot("bots.drive_thru", "--receipts", "--orders", str(path))
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith("Jerusalem Shakshuka\nOrder 1, ")
    assert printed.stdout.count("Total") == 1


@pytest.mark.realtime
async def test_the_assistant_as_a_process(tmp_path: Path) -> None:
    (tmp_path / "handbook").mkdir()
    (tmp_path / "handbook" / "spice.md").write_text("Our spicy sauce comes from Aleppo.")
    rules = [
        Rule("spicy", ">> It is from Aleppo.", "search_documents", {"question": "spicy sauce"})
    ]
    files = ("--notes", str(tmp_path / "notes.txt"), "--documents", str(tmp_path / "handbook"))
    async with StubLLM(rules) as llm:
        arguments = ("--model", "nano", *SCRIPT, *connection(llm), *files)
        with BotProcess("bots.assistant", *arguments) as bot:
            calls: list[Messages] = []
            async with aiohttp.ClientSession(bot.url) as http, webrtc_caller(calls) as (peer, body):
                async with http.post("/api/offer", json=body) as response:
                    await receive_audio(peer, await response.json())
                [messages] = calls
                about = {"library": "tests", "library_version": "1", "platform": "python"}
                await messages.send("client-ready", "0", {"version": "1.0.0", "about": about})
                await patiently(messages, lambda each: "Aleppo" in str(each.get("data")))
        asked = [each for body in llm.requests for each in body["messages"]]
        [result] = [each["content"] for each in asked if each["role"] == "tool"][:1]
        assert "Our spicy sauce comes from Aleppo." in result and "spice.md" in result
        names = [each["function"]["name"] for each in llm.requests[0]["tools"]]
        assert names == [
            *("current_time", "calculate", "write_note", "read_notes", "search_documents")
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bot", "arguments", "message"),
    [
        ("drive_thru", ["--backend", "openai"], "needs --stt whisper"),
        ("drive_thru", ["--backend", "oracle"], "must be one of"),
        ("drive_thru", ["--stt", "ears"], "must be none, whisper, deepgram"),
        ("drive_thru", ["--receipts", "--orders", "/nowhere.db"], "there is no file /nowhere.db"),
        ("drive_thru", [*SCRIPT, "--backend", "openai"], "needs OPENAI_API_KEY"),
        (
            "drive_thru",
            [*SCRIPT, "--backend", "ollama", "--backend-model", "m", "--orders", "/proc/o.db"],
            "--orders /proc/o.db cannot be used",
        ),
        (
            "drive_thru",
            [*SCRIPT, "--backend", "ollama", "--backend-model", "m", "--menu", "/nowhere.toml"],
            "the menu /nowhere.toml cannot be read",
        ),
        ("assistant", ["--documents", "/tmp"], "--documents needs --backend"),
        ("drive_thru", ["--menu", "menu.toml"], "--menu needs --backend"),
        (
            "assistant",
            [*SCRIPT, "--backend", "ollama", "--backend-model", "m", "--documents", "/nowhere"],
            "--documents /nowhere is not a folder",
        ),
        (
            "assistant",
            [*SCRIPT, "--backend", "ollama", "--backend-model", "m", "--notes", "/proc/n"],
            "--notes /proc/n",
        ),
    ],
)
def test_the_process_exits_with_a_one_line_error(
    bot: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    ended = run_bot(f"bots.{bot}", "--model", "nano", *arguments)
    assert ended.returncode == 2
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], ended.stderr
    assert "Traceback" not in ended.stderr and "Uvicorn" not in ended.stderr
