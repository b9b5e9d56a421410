"""The page's calls to a server: with a key, and no faster than the server takes changes."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, expect

from tests.helpers.chromium import needs_chromium
from tests.talk.browsers import TalkPage
from tests.talk.processes import TalkProcess
from tests.talk.stand_in_server import StandInServer
from tests.talk.watching import OPENED, press_talk, watched

pytestmark = [
    pytest.mark.browser,
    pytest.mark.page,
    pytest.mark.slow,
    needs_chromium,
]
KEY = "Key of this server"
NO_STORAGE = """
for (const name of ["localStorage", "sessionStorage"]) {
  Object.defineProperty(window, name, {
    get() { throw new DOMException("Access is denied for this document.", "SecurityError"); },
  });
}
"""


def open_with_keys(page: TalkPage) -> None:
    """Open the page of a server that takes every key."""
    StandInServer(page, key_required=True, voices=[], voice="")
    voices = {"voices": ["NATF2", "NATM1"]}
    page.page.route("**/v1/voices", lambda route: route.fulfill(json=voices))
    page.open()


def enter(page: TalkPage, key: str) -> None:
    field = page.page.get_by_label(KEY)
    field.fill(key)
    field.blur()


def test_talk_without_a_key_asks_for_it(browser: Browser, bot: TalkProcess) -> None:
    with watched(browser, bot.url, OPENED) as page:
        open_with_keys(page)
        press_talk(page)
        page.until_banner("Enter the key of this server first.")
        page.until_status("Not connected")
        assert page.page.evaluate("opened.length") == 0  # not the microphone either
        enter(page, "right")
        expect(page.page.get_by_role("radio", name="NATM1")).to_be_visible()
        expect(page.page.locator("#banner")).to_be_hidden()
        page.page.reload()
        expect(page.page.get_by_label(KEY)).to_have_value("right")
        assert page.problems == []


@pytest.mark.parametrize("key", ["ключ", "two words"])
def test_what_no_key_looks_like(browser: Browser, bot: TalkProcess, key: str) -> None:
    """The browser would send it in no header, or not as a subprotocol."""
    with watched(browser, bot.url, OPENED) as page:
        open_with_keys(page)
        enter(page, key)
        page.until_banner("The server does not know this key.")
        page.page.get_by_role("button", name="Close this message").click()
        press_talk(page)
        page.until_banner("The server does not know this key.")
        assert page.page.evaluate("opened.length") == 0
        assert page.problems == []


def test_a_browser_that_forbids_its_storage(browser: Browser, bot: TalkProcess) -> None:
    with watched(browser, bot.url, NO_STORAGE) as page:
        open_with_keys(page)
        page.page.get_by_role("button", name="Theme: auto").click()
        expect(page.page.get_by_role("button", name="Theme: light")).to_be_visible()
        expect(page.page.locator("html")).to_have_attribute("data-theme", "light")
        enter(page, "right")
        expect(page.page.get_by_role("radio", name="NATM1")).to_be_visible()
        assert page.problems == []


def test_a_server_gets_one_change_a_second(browser: Browser, bot: TalkProcess) -> None:
    """Also if it has carried out the one before at once, or refused it."""
    with watched(browser, bot.url) as page:
        server = StandInServer(page, ready=False)  # it gets no sound, and sends none
        page.open()
        press_talk(page)
        page.until_status("Connected")
        for voice, times in (("NATM1", 1), ("NATF2", 0), ("NATF2", 1), ("NATM1", 2)):
            server.refuses = not times
            page.page.get_by_role("radio", name=voice).click()
            if server.refuses:
                page.until_banner("the engine is busy")
            else:
                page.until_transcript(f"new role or voice ({voice})", times)
        page.hang_up()
        first, *_, last = server.changes
        assert len(server.changes) == 4 and last - first > 2.5
