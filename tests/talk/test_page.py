"""The controls of the page in a real Chromium: each changes what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, FilePayload, Page, WebSocketRoute, expect

from pipecat_personaplex.talk.about import describe_model
from tests.helpers.chromium import needs_chromium
from tests.helpers.servers import ServeProcess
from tests.talk.browsers import NO_WEBRTC, PERIOD_SECONDS, TalkPage
from tests.talk.processes import TalkProcess

pytestmark = [
    pytest.mark.browser,
    pytest.mark.serial,
    pytest.mark.slow,
    needs_chromium,
]
_FADE_MS = 400  # longer than any colour of the page takes to change
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def test_the_persona_changes_in_mid_call(opened: TalkPage) -> None:
    page = opened.talk().page
    opened.until_transcript("Owen.")
    page.get_by_label("and is called").fill("Grace")
    page.get_by_role("button", name="Change during the call").click()
    opened.until_transcript("new role or voice (NATF2)")
    opened.until_transcript("Grace.")  # the same question, another answer, in the same call
    page.get_by_role("radio", name="NATM1").check()
    opened.until_transcript("new role or voice (NATM1)")
    page.get_by_label("Tell it a fact").fill("The kitchen closes in ten minutes")
    page.get_by_role("button", name="Add").click()
    opened.until_transcript("NATM1", times=2)
    prompt = page.get_by_label("Prompt", exact=True).input_value()
    assert prompt.count("Information:") == 1
    assert prompt.endswith("12 Market Street. The kitchen closes in ten minutes.")
    opened.hang_up()


def test_say_and_hold(opened: TalkPage) -> None:
    page = opened.talk().page
    page.get_by_role("button", name="Mute").click()  # the question would cut the text
    page.get_by_label("Have it say").fill("One moment please.")
    page.get_by_role("button", name="Say", exact=True).click()
    opened.until_transcript("One moment please.")
    page.get_by_role("button", name="Muted").click()
    opened.until_transcript("Owen.")
    page.wait_for_timeout(1500)  # the answer ends
    page.get_by_role("button", name="Hold").click()
    page.get_by_role("button", name="Release").wait_for()
    answers = opened.count("Owen")
    page.wait_for_timeout(1000 * (PERIOD_SECONDS + 1))  # the question is asked again
    assert opened.count("Owen") == answers
    page.get_by_role("button", name="Release").click()
    opened.until_transcript("Owen", times=answers + 1)
    opened.hang_up()


def test_sampling_acts_in_mid_call_and_stays_in_the_address(opened: TalkPage) -> None:
    page = opened.talk().page
    page.get_by_role("heading", name="Sampling").click()
    page.get_by_label("Freedom of the words").fill("1.5")
    page.get_by_label("Candidates for words").fill("100")
    page.get_by_text("Sampling changed").wait_for()
    assert "temperature_text=1.5" in page.url and "top_k_text=100" in page.url
    opened.hang_up()
    page.reload()
    opened.until_status("Ready")
    page.get_by_role("heading", name="Sampling").click()
    expect(page.get_by_label("Freedom of the words")).to_have_value("1.5")


def test_muting_sends_silence(opened: TalkPage, tmp_path: Path) -> None:
    page = opened.talk().page
    page.get_by_role("button", name="Mute").click()
    page.wait_for_timeout(1000 * (PERIOD_SECONDS + 1))
    voices, rate = soundfile.read(opened.download("Stereo WAV", tmp_path / "call.wav"))
    assert np.abs(voices[-PERIOD_SECONDS * rate :, 0]).max() < 1e-3
    opened.hang_up()


def test_without_webrtc_a_websocket_takes_its_place(browser: Browser, bot: TalkProcess) -> None:
    with TalkPage(browser, bot.url) as page:
        page.page.add_init_script(NO_WEBRTC)
        page.open().talk()
        page.until_transcript("a WebSocket takes its place")
        page.until_transcript("Owen.")
        page.hang_up()
        assert page.foreign == []


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


def test_a_prompt_beyond_the_window_and_a_file_with_a_foreign_name(
    browser: Browser, bot: TalkProcess
) -> None:
    size = {"text": 1900, "voice": 50, "frames": 2000, "limit": 2999, "window": 1499}
    with TalkPage(browser, bot.url) as page:
        page.page.route("**/api/prompt", lambda route: route.fulfill(json=size))
        page.page.route("**/api/voices?*", lambda route: route.fulfill(json={"voices": ["voice"]}))
        page.open()
        expect(page.page.locator("#tokens")).to_contain_text("remembers nothing of the call")
        file: FilePayload = {"name": "голос.wav", "mimeType": "audio/wav", "buffer": b"RIFF"}
        with page.page.expect_request("**/api/voices?*") as added:
            page.page.locator("#voice-file").set_input_files(file)
        assert "name=voice&" in added.value.url
        expect(page.page.get_by_role("radio", name="voice")).to_be_checked()


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


def test_the_keyboard(opened: TalkPage) -> None:
    page = opened.page
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    opened.until_status("Talk now")
    page.keyboard.press("m")
    page.get_by_role("button", name="Muted").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("t")  # letters in a field are letters
    assert page.get_by_label("Have it say").input_value() == "t"
    page.get_by_label("Have it say").blur()
    page.keyboard.press("t")
    opened.until_status("You hung up.")


def test_the_page_of_a_server(browser: Browser) -> None:
    with ServeProcess("--page", "--model", "nano") as server, TalkPage(browser, server.url) as page:
        page.open().talk()
        page.page.get_by_label("Have it say").fill("One moment please.")
        page.page.get_by_role("button", name="Say", exact=True).click()
        page.until_transcript("please.")
        page.page.get_by_role("radio", name="NATM1").check()
        page.until_transcript("new role or voice (NATM1)")
        expect(page.page.locator("#steered")).to_have_text("The new role is in effect")
        page.hang_up()
        assert page.foreign == [] and page.problems == []
