"""Text with half of a surrogate pair, at every door of the package."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipecat_personaplex.config import Persona, checked_text
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.protocol.session_messages import parse_client
from pipecat_personaplex.remote import RemoteEngine
from pipecat_personaplex.remote.instructions import Instructions
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings
from tests.helpers.engines import FakeEngine

BROKEN = "caf\udce9"


def _settings() -> object:
    settings = PersonaPlexLLMSettings.defaults()
    settings.system_instruction = BROKEN
    return settings.persona(["NATF2"])


DOORS: dict[str, Callable[[], object]] = {
    "voice": lambda: Persona(BROKEN),
    "text prompt": lambda: Persona("NATF2", BROKEN),
    "settings": _settings,
    "greeting": lambda: PersonaPlexLLMService(FakeEngine(), greeting=BROKEN),
    "words for a remote engine": lambda: Instructions().say(BROKEN, "pause", None),
    "URL": lambda: RemoteEngine(f"ws://{BROKEN}:8998"),
    "key": lambda: RemoteEngine("ws://localhost:8998", api_key=BROKEN),
    "message": lambda: parse_client('{"type": "say", "text": "caf\\udce9"}'),
}


@pytest.mark.parametrize("door", DOORS)
def test_broken_text_is_one_clear_error(door: str) -> None:
    with pytest.raises(UserError) as refused:
        DOORS[door]()
    text = str(refused.value)
    text.encode()  # can be logged and printed
    assert "\n" not in text and len(text) < 300


def test_valid_text_passes() -> None:
    assert checked_text("name", "café 🎙") == "café 🎙"
    with pytest.raises(UserError, match="name must be text, not int"):
        checked_text("name", 7)  # type: ignore[arg-type]
