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
from tests.talk.stand_in_server import StandInServer
from tests.talk.watching import until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.page,
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


class StandInBot:
    """Answers the calls of a page in place of its bot: with TOOLS, and with refusals."""

    def __init__(self, page: Page):
        self._pieces = 0
        page.add_init_script(NO_WEBRTC)
        page.route_web_socket("**/api/socket", self._connected)

    def send(self, message: dict[str, Any]) -> None:
        self._socket.send(json.dumps({"label": "rtvi-ai", **message}))

    def speak(self, word: str) -> None:
        """A turn of one word."""
        self.send({"type": "bot-output", "data": {"text": word}})
        self.send({"type": "bot-tts-stopped"})

    def _connected(self, websocket: WebSocketRoute) -> None:
        self._socket = websocket
        websocket.on_message(self._respond)

    def _respond(self, text: str | bytes) -> None:
        if isinstance(text, bytes):  # 20 ms
            self._pieces += 1
            if self._pieces % 25 == 0:
                self.send({"type": "server-message", "data": {"kind": "tick"}})
            return
        message = json.loads(text)
        if "voice" in message:  # the request for a call
            self._socket.send(json.dumps({"opened": True}))
            # Sound and messages may follow at once, before the page has done anything.
            self._socket.send(bytes(2 * 960))
            self.send(TOOLS[0])
        elif message["type"] == "client-ready":
            for event in TOOLS[1:]:
                self.send(event)
        elif message["type"] == "client-message":
            self._refuse(message["id"], message["data"]["d"])

    def _refuse(self, request: str, data: dict[str, Any]) -> None:
        if "voice" not in data:
            refusal = {"error": "the prompt is too long"}
            self.send({"type": "error-response", "id": request, "data": refusal})
        else:  # known only after the response
            self.send({"type": "server-response", "id": request, "data": {"ok": True}})
            refusal = {"error": "the persona was not changed: the engine is busy"}
            self.send({"type": "error", "data": refusal})


def test_tool_calls_and_the_order_are_shown(
    browser: Browser, bot: TalkProcess, tmp_path: Path
) -> None:
    with TalkPage(browser, bot.url) as page:
        StandInBot(page.page)
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
        assert page.problems == []


def test_a_role_that_takes_long_to_compute(browser: Browser, bot: TalkProcess) -> None:
    """A server sends nothing meanwhile, and the page no sound, which would be answered at once."""
    with TalkPage(browser, bot.url) as page:
        server = StandInServer(page, ready=False)
        page.open().page.get_by_role("button", name="Talk").click()
        page.until_status("Connected")
        page.page.wait_for_timeout(5_000)
        assert server.frames == 0
        server.send(type="ready")
        page.until_status("Talk now")
        until(page, lambda: server.frames > 10)
        page.hang_up()
        assert page.problems == []


def test_a_refused_fact_leaves_the_role_as_it_was(browser: Browser, bot: TalkProcess) -> None:
    with TalkPage(browser, bot.url) as page:
        StandInBot(page.page)
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


def test_a_refused_voice_leaves_the_gallery_as_it_was(browser: Browser, bot: TalkProcess) -> None:
    with TalkPage(browser, bot.url) as page:
        StandInBot(page.page)
        page.open().page.get_by_role("button", name="Talk").click()
        page.until_transcript("add_item")
        page.page.get_by_role("radio", name="NATM1").click()
        page.until_banner("the persona was not changed")
        expect(page.page.get_by_role("radio", name="NATF2")).to_be_checked()
        assert "voice=" not in page.page.url
        page.hang_up()
        page.page.get_by_role("radio", name="NATM1").check()  # of the next call
        assert "voice=NATM1" in page.page.url


def test_a_server_that_refuses_a_voice(browser: Browser, bot: TalkProcess) -> None:
    with TalkPage(browser, bot.url) as page:
        server = StandInServer(page)
        page.open().page.get_by_role("button", name="Talk").click()
        page.until_status("Talk now")
        page.page.get_by_role("radio", name="NATM1").check()
        page.until_transcript("new role or voice (NATM1)")
        page.page.wait_for_timeout(1_500)  # the page sends one change a second
        server.refuses = True
        page.page.get_by_role("radio", name="NATF2").click()
        page.until_banner("the engine is busy")
        expect(page.page.get_by_role("radio", name="NATM1")).to_be_checked()
        assert "voice=NATM1" in page.page.url
        page.hang_up()
        assert page.problems == []


def test_characters_that_the_model_spells_in_bytes(browser: Browser, bot: TalkProcess) -> None:
    with TalkPage(browser, bot.url) as page:
        server = StandInServer(page)
        # The last one is cut off, as a model may do.
        server.pieces = [" caf", "<0xC3>", "<0xA9>", "", " ", "<0xE2>", "<0x82>", "<0xAC>", "5"]
        server.pieces += [" <0x41", "", " x", "<0xC3>", "", " end."]
        page.open().page.get_by_role("button", name="Talk").click()
        page.until_transcript("café €5 <0x41 x\ufffd end.")
        page.hang_up()
        assert page.problems == []


def test_the_transcript_can_be_read_during_a_call(browser: Browser, bot: TalkProcess) -> None:
    below = "({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight"
    with TalkPage(browser, bot.url) as page:
        stand_in = StandInBot(page.page)
        page.open().page.get_by_role("button", name="Talk").click()
        page.until_transcript("add_item")
        transcript = page.page.locator("#transcript")
        for turn in range(20):
            stand_in.speak(f"Turn{turn}.")
        page.until_transcript("Turn19.")
        assert transcript.evaluate(below) < 2  # the end is in sight
        transcript.evaluate("(list) => { list.scrollTop = 0; }")
        stand_in.speak("Later.")
        page.until_transcript("Later.")
        assert transcript.evaluate("(list) => list.scrollTop") == 0
        transcript.evaluate("(list) => { list.scrollTop = list.scrollHeight; }")
        transcript.evaluate("(list) => { list.scrollTop -= 20; }")
        stand_in.speak("Last.")
        page.until_transcript("Last.")
        assert transcript.evaluate(below) < 2
        page.hang_up()


def test_the_button_keeps_its_name_while_the_clock_runs(browser: Browser, bot: TalkProcess) -> None:
    with TalkPage(browser, bot.url) as page:
        StandInBot(page.page)
        button = page.open().page.locator("#talk")
        expect(button).to_have_accessible_name("Talk")
        button.click()
        for clock in ("0:01", "0:02"):
            expect(button).to_contain_text(clock)
            expect(button).to_have_accessible_name("Hang up")
        page.hang_up()
        expect(button).to_have_text("Talk")


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
