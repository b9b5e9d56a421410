"""What a page shows and opens, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser

from tests.talk.browsers import TalkPage

SECONDS = 3.0
"""Within these the page says what has gone wrong."""

# When each message of the page appeared, and when Talk was pressed, in ms of the wall clock.
WATCH = """
window.appeared = {};
window.pressed = 0;
addEventListener("click", (event) => {
  if (event.target.id === "talk") window.pressed = Date.now();
}, true);
addEventListener("DOMContentLoaded", () => {
  const [banner, hint] = ["banner", "hint"].map((id) => document.getElementById(id));
  new MutationObserver(() => {
    if (!banner.hidden) window.appeared[banner.textContent] ??= Date.now();
    window.appeared[hint.textContent] ??= Date.now();
  }).observe(document.body, { subtree: true, childList: true, attributes: true });
});
"""
# What the page has opened. `asked`, if there is one, delays the answer to a question for the
# microphone.
OPENED = """
window.opened = [];
for (const name of ["AudioContext", "RTCPeerConnection"]) {
  window[name] = class extends window[name] {
    constructor(...given) {
      super(...given);
      window.opened.push(this);
    }
  };
}
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (constraints) => {
  await window.asked?.();
  const stream = await ask(constraints);
  window.opened.push(...stream.getTracks());
  return stream;
};
window.stillOpen = () => window.opened.filter(({ state, signalingState, readyState }) =>
  ![state, signalingState, readyState].some((name) => name === "closed" || name === "ended"));
"""


@contextmanager
def watched(browser: Browser, url: str, *scripts: str) -> Iterator[TalkPage]:
    with TalkPage(browser, url) as page:
        for script in (WATCH, *scripts):
            page.page.add_init_script(script)
        yield page


def press_talk(page: TalkPage) -> None:
    page.page.get_by_role("button", name="Talk").click()


def seconds_until(page: TalkPage, words: str, since: float | None = None) -> float:
    """How long a message took, from a wall clock time or from the press of Talk."""
    appeared = page.page.evaluate("appeared")
    [at] = [at for text, at in appeared.items() if words in text][:1]
    took = at / 1000 - (page.page.evaluate("pressed") / 1000 if since is None else since)
    print(f"{words!r} after {took:.2f} s")
    return float(took)


def until(page: TalkPage, condition: Callable[[], bool]) -> None:
    """Wait for a condition while the page runs."""
    for _ in range(600):
        if condition():
            return
        page.page.wait_for_timeout(50)
    raise AssertionError("it did not happen within 30 s")


def until_closed(page: TalkPage) -> None:
    """Wait until everything is closed that the page has opened."""
    assert page.page.evaluate("opened.length") > 0
    until(page, lambda: page.page.evaluate("stillOpen().length") == 0)
