from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Playwright, sync_playwright

from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.talk.local_engine import LocalEngine
from tests.helpers.chromium import browsing, with_microphone
from tests.talk.browsers import TalkPage, write_microphone
from tests.talk.processes import TalkProcess


@pytest.fixture(scope="package")
def local() -> Iterator[LocalEngine]:
    """Nano, with one slot."""
    loaded = LocalEngine("nano", EngineConfig(device="cpu", max_sessions=1))
    with loaded.engine:
        yield loaded


# Of a module, because Playwright's loop would be in the way of tests with a loop of their own.


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium whose microphone asks a question every six seconds."""
    microphone = write_microphone(tmp_path_factory.mktemp("microphone") / "question.wav")
    with browsing(playwright, *with_microphone(microphone)) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def bot() -> Iterator[TalkProcess]:
    """``personaplex talk`` with nano and one slot."""
    with TalkProcess("--model", "nano", "--max-sessions", "1") as bot:
        yield bot


@pytest.fixture
def opened(browser: Browser, bot: TalkProcess) -> Iterator[TalkPage]:
    with TalkPage(browser, bot.url) as page:
        yield page.open()
        assert page.foreign == [] and page.problems == []
