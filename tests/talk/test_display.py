"""What the page shows in a real Chromium: tools, refusals, and all of it on any width."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, WebSocketRoute, expect

from pipecat_personaplex.talk.about import describe_model
from tests.helpers.chromium import needs_chromium
from tests.talk.browsers import NO_WEBRTC, TalkPage
from tests.talk.processes import TalkProcess

pytestmark = [
    pytest.mark.browser,
    pytest.mark.serial,
    pytest.mark.slow,
    needs_chromium,
]
_FADE_MS = 400  # longer than any colour of the page takes to change
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
# Messages of a bot whose agent has tools and takes an order, as Pipecat and bots.drive_thru send
# them. The bots serve Pipecat's own page, and this model's agents have tools of their own nowhere.
TOOLS = (
    {
        "type": "llm-function-call-in-progress",
        "data": {
            "tool_call_id": "1",
            "function_name": "add_item",
            "arguments": {"item": "Classic shakshuka", "quantity": 2},
        },
    },
    {
        "type": "server-message",
        "data": {
            "type": "order",
            "order": {
                "number": 3,
                "state": "open",
                "lines": [
                    {
                        "item": "Classic shakshuka",
                        "size": "regular",
                        "note": "no onions",
                        "quantity": 2,
                        "cents": 950,
                        "price": "$19.00",
                    }
                ],
                "total": "$19.00",
            },
        },
    },
    {
        "type": "llm-function-call-stopped",
        "data": {
            "tool_call_id": "1",
            "cancelled": False,
            "function_name": "add_item",
            "result": {"order": ["2 Classic shakshuka (no onions)"], "total": "$19.00"},
        },
    },
)


def stand_in(page: Page) -> None:
    """Answer the calls of a page in place of its bot: with TOOLS, and with refusals."""

    def answer(websocket: WebSocketRoute) -> None:
        def send(message: dict[str, Any]) -> None:
            websocket.send(json.dumps({"label": "rtvi-ai", **message}))

        def respond(text: str | bytes) -> None:
            if isinstance(text, bytes):
                return
            message = json.loads(text)
            if "voice" in message:  # the request for a call
                websocket.send(json.dumps({"opened": True}))
            elif message["type"] == "client-ready":
                for event in TOOLS:
                    send(event)
            elif message["type"] == "client-message":
                refusal = {"error": "the prompt is too long"}
                send({"type": "error-response", "id": message["id"], "data": refusal})

        websocket.on_message(respond)

    page.add_init_script(NO_WEBRTC)
    page.route_web_socket("**/api/socket", answer)


def test_tool_calls_and_the_order_are_shown(
    browser: Browser, bot: TalkProcess, tmp_path: Path
) -> None:
    with TalkPage(browser, bot.url) as page:
        stand_in(page.page)
        page.open().page.get_by_role("button", name="Talk").click()
        tool = page.page.locator("#transcript .tool")
        expect(tool.locator("b")).to_have_text("add_item")
        expect(tool).to_contain_text("item: Classic shakshuka, quantity: 2")
        expect(tool.locator(".result")).to_contain_text("2 Classic shakshuka (no onions)")
        order = page.page.locator("#transcript .order")
        expect(order).to_contain_text("Order 3, open")
        expect(order.locator("tr").first).to_contain_text("(no onions)$19.00")
        expect(order.locator("tr").last).to_have_text("Total$19.00")
        report = json.loads(page.download("JSON", tmp_path / "call.json").read_text())
        [called] = [line for line in report["transcript"] if line["side"] == "tool"]
        assert called["text"].startswith("add_item(item: Classic shakshuka, quantity: 2) → order:")
        page.hang_up()


def test_a_role_that_takes_long_to_compute(browser: Browser, bot: TalkProcess) -> None:
    """A server sends nothing meanwhile."""

    def session(websocket: WebSocketRoute) -> None:
        def respond(message: str | bytes) -> None:
            if isinstance(message, str) and json.loads(message)["type"] == "open":
                websocket.send(json.dumps({"type": "opened"}))

        websocket.on_message(respond)
        websocket.send(json.dumps({"type": "hello"}))
        sockets.append(websocket)

    sockets: list[WebSocketRoute] = []
    with TalkPage(browser, bot.url) as page:
        info = page.page.request.get(f"{bot.url}/api/info").json() | {"server": "serve"}
        page.page.route("**/api/info", lambda route: route.fulfill(json=info))
        page.page.route_web_socket("**/v1/session", session)
        page.open().page.get_by_role("button", name="Talk").click()
        page.until_status("Connected")
        page.page.wait_for_timeout(5_000)
        sockets[0].send(json.dumps({"type": "ready"}))
        page.until_status("Talk now")
        page.hang_up()
        assert page.problems == []


def test_a_refused_fact_leaves_the_role_as_it_was(browser: Browser, bot: TalkProcess) -> None:
    with TalkPage(browser, bot.url) as page:
        stand_in(page.page)
        page.open().page.get_by_role("button", name="Talk").click()
        page.until_transcript("add_item")
        prompt = page.page.get_by_label("Prompt", exact=True)
        before = prompt.input_value()
        fact = page.page.get_by_label("Tell it a fact")
        fact.fill("The kitchen closes at nine")
        page.page.get_by_role("button", name="Add").click()
        page.until_banner("the prompt is too long")
        expect(prompt).to_have_value(before)
        expect(fact).to_have_value("The kitchen closes at nine")
        page.hang_up()


@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_is_accessible_before_and_during_a_call(
    browser: Browser, bot: TalkProcess, width: int
) -> None:
    with TalkPage(browser, bot.url, viewport={"width": width, "height": 800}) as page:

        def check() -> None:
            for theme in THEMES:
                page.page.emulate_media(color_scheme=theme)
                page.page.wait_for_timeout(_FADE_MS)
                found = Axe().run(page.page)
                assert found.violations_count == 0, (theme, found.generate_report())
                # Nothing is wider than a telephone.
                assert page.page.evaluate("document.documentElement.scrollWidth") <= width

        page.open()
        check()
        page.talk()
        page.page.get_by_role("button", name="Hold").click()
        page.until_transcript("Owen.")
        check()
        page.hang_up()


def test_a_long_name_of_a_model_fits_on_a_telephone(browser: Browser, bot: TalkProcess) -> None:
    about = describe_model("nvidia/personaplex-7b-v1")
    with TalkPage(browser, bot.url, viewport={"width": 360, "height": 800}) as page:
        info = page.page.request.get(f"{bot.url}/api/info").json()
        info |= {"model": about.name, "roles": [vars(role) for role in about.roles]}
        page.page.route("**/api/info", lambda route: route.fulfill(json=info))
        page.open()
        expect(page.page.locator("#model")).to_have_text(about.name)
        assert page.page.evaluate("document.documentElement.scrollWidth") <= 360
