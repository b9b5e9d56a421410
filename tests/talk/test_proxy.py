"""The page behind a proxy: of a notebook, and of another host below a path."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, web
from playwright.sync_api import Browser

from tests.helpers.bots import environment
from tests.helpers.chromium import needs_chromium
from tests.helpers.proxy import Proxy, StunServer
from tests.talk.browsers import NO_WEBRTC, TalkPage
from tests.talk.processes import TalkProcess
from tests.talk.watching import SECONDS, seconds_until, watched

pytestmark = [
    pytest.mark.browser,
    pytest.mark.page,
    pytest.mark.slow,
    needs_chromium,
]
NOTEBOOK = Path(__file__).parents[2] / "docs" / "colab.ipynb"


def module(name: str, **members: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(members)
    return made


def test_the_notebook_opens_the_page_through_its_proxy(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cells run here; Colab's functions are stand-ins, and its proxy passes no WebSocket."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code.pop(0) == "%pip install --quiet 'pipecat-personaplex[talk]'"
    shown: list[str] = []

    def no_secret(name: str) -> str:
        raise LookupError(f"Secret {name} does not exist.")

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Proxy(port, websockets=False) as proxy, StunServer() as stun:
        colab = {
            "google": module("google"),
            "google.colab": module("google.colab", userdata=types.SimpleNamespace(get=no_secret)),
            "google.colab.output": module(
                "google.colab.output",
                eval_js={f"google.colab.kernel.proxyPort({port})": proxy.url}.__getitem__,
            ),
            "IPython": module("IPython"),
            "IPython.display": module("IPython.display", HTML=str, display=shown.append),
        }
        for name, stand_in in colab.items():
            monkeypatch.setitem(sys.modules, name, stand_in)
        for name, value in environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        names: dict[str, Any] = {}
        start, address, stop = code[1:]
        start = start.replace("PORT = 7860", f"PORT = {port}")
        start = start.replace("stun:stun.l.google.com:19302", stun.url)
        for cell in (code[0], start, address):
            exec(compile(cell, str(NOTEBOOK), "exec"), names)
        try:
            [link] = re.findall('href="([^"]+)"', "".join(shown))
            with TalkPage(browser, link.removesuffix("/")) as page:
                page.open().talk()
                page.until_transcript("Owen.")
                assert page.count("WebSocket") == 0
                page.hang_up()
                assert page.foreign == [] and page.problems == []
        finally:
            exec(compile(stop, str(NOTEBOOK), "exec"), names)
            names["bot"].wait(30)


def test_a_proxy_below_a_path_passes_calls_over_websockets(browser: Browser) -> None:
    bot = TalkProcess("--model", "nano")
    with Proxy(bot.port, websockets=True) as proxy:
        bot.add("--public-url", proxy.url)
        with bot, TalkPage(browser, proxy.url.removesuffix("/")) as page:
            assert f"Talk to nano at {proxy.url}" in bot.log
            page.page.add_init_script(NO_WEBRTC)
            page.open().talk()
            page.until_transcript("Owen.")
            page.page.get_by_role("button", name="Play a preview of NATM1").click()
            page.page.locator("button[data-played]").wait_for()
            page.hang_up()
            assert page.foreign == [] and page.problems == []


class Gateway(Proxy):
    """As usual proxies, it tells that the bot does not answer in words of its own."""

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        try:
            return await super()._forward(request)
        except ClientError:
            body = "<h1>Bad Gateway</h1>"
            return web.Response(status=502, text=body, content_type="text/html")


def test_a_bot_that_is_killed_behind_a_proxy(browser: Browser) -> None:
    bot = TalkProcess("--model", "nano")
    with Gateway(bot.port, websockets=True) as proxy:
        bot.add("--public-url", proxy.url)
        with bot, watched(browser, proxy.url.removesuffix("/"), NO_WEBRTC) as page:
            page.open().talk()
            page.page.evaluate("appeared = {}")
            killed = time.time()
            os.kill(bot.pid, signal.SIGKILL)
            page.until_banner("The bot is gone")
            assert seconds_until(page, "The bot is gone", killed) < SECONDS
            for button in ("Try again", "Play a preview of NATM1"):
                page.page.get_by_role("button", name=button).click()
                page.until_status("Not connected")
                page.until_banner("The bot is gone")
                page.page.get_by_role("button", name="Close this message").click()
            assert page.problems == []
