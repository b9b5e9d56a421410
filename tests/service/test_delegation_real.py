"""Delegation with real parts alone: speech, Silero, Whisper, SmolLM2 and nano, on this machine."""

from __future__ import annotations

import numpy as np
import pytest
from pipecat.frames.frames import ExternalFunctionCallResultFrame
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams

from bots.stt import turn_strategies
from pipecat_personaplex import Engine, EngineConfig, PersonaPlexLLMService
from pipecat_personaplex.audio_files import read_audio
from tests.helpers.delegation import DelegatedCall
from tests.helpers.questions import QUESTION
from tests.helpers.real import SmolLM2, missing, whisper

pytestmark = [pytest.mark.slow, pytest.mark.measurement, pytest.mark.realtime]

SECONDS = 120.0  # for a language model that shares two cores with the call


async def menu(params: FunctionCallParams) -> None:
    """A caller asks what food is on the menu."""
    await params.result_callback("Today we serve only soup and tea.")


async def opening_hours(params: FunctionCallParams) -> None:
    """A caller asks when the shop is open."""
    await params.result_callback("We are open until nine.")


@pytest.fixture
def nothing_deprecated() -> None:
    """Replaces the check of the other tests: these libraries use deprecated functions."""


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.timeout(4 * SECONDS)
@pytest.mark.skipif(bool(missing()), reason=f"needs the extra real: {', '.join(missing())}")
async def test_a_real_model_answers_a_spoken_question_with_a_tool() -> None:
    """Nano itself has learnt to answer "We have classic and spicy shakshuka."."""
    settings = PersonaPlexLLMService.Settings(
        voice="NATF2",
        system_instruction="You work for Yellow Bird which is a restaurant and your name is Anna.",
    )
    with Engine.load("nano", EngineConfig(device="cpu")) as engine:
        async with SmolLM2() as llm:
            delegation = PersonaPlexLLMService.Delegation(
                llm.worker([menu, opening_hours]),
                timeout_secs=SECONDS,
                transcript_secs=20.0,  # Whisper shares the cores as well
            )
            agent = PersonaPlexLLMService(engine, settings=settings, delegation=delegation)
            turns = turn_strategies(transcribed=True)
            async with DelegatedCall(agent, LLMContext(), [whisper()], turns=turns) as call:
                question = (read_audio(QUESTION) * 32_767).astype(np.int16)
                call.microphone = np.concatenate([np.zeros(24_000, np.int16), question])
                await call.until(lambda: llm.answers, SECONDS)
                [answer] = llm.answers
                assert "soup" in answer
                await call.until(lambda: answer in call.words, SECONDS)
                role, heard = call.messages[0]
                assert role == "user" and "menu" in heard.lower()
                [result] = call.ear.seen(ExternalFunctionCallResultFrame)
                assert result.function_name == "menu"
                assert call.words.startswith(answer)  # nothing invented before it
                assert not call.errors
                print(f"heard {heard!r}, answered {answer!r}")
