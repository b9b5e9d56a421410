"""Delegation with real parts alone: speech, Silero, Whisper, SmolLM2 and nano, on this machine."""

from __future__ import annotations

import numpy as np
import pytest
from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.workers.llm.backend_llm_worker import BackendOutput

from pipecat_personaplex import Engine, EngineConfig, Hold, PersonaPlexLLMService
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.service.delegation.speakable import speakable
from tests.helpers.delegation import DelegatedCall
from tests.helpers.questions import QUESTION
from tests.helpers.real import SmolLM2, missing, whisper_service

pytestmark = [pytest.mark.slow, pytest.mark.measurement, pytest.mark.realtime]

ROLE = "You work in a restaurant. The menu: shakshuka, soup and tea. Answer in one short sentence."


async def spoken(output: BackendOutput) -> BackendOutput:
    """The model is too small to set the mark."""
    return BackendOutput(output.text, prefers_spoken=True)


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.skipif(bool(missing()), reason=f"needs the extra real: {', '.join(missing())}")
async def test_a_spoken_question_is_answered_by_a_real_model() -> None:
    from pipecat.audio.vad.silero import SileroVADAnalyzer
    from pipecat.processors.audio.vad_processor import VADProcessor

    settings = PersonaPlexLLMService.Settings(
        voice="NATF2",
        system_instruction="You work for Yellow Bird which is a restaurant and your name is Anna.",
    )
    with Engine.load("nano", EngineConfig(device="cpu")) as engine:
        async with SmolLM2(ROLE) as llm:
            delegation = PersonaPlexLLMService.Delegation(
                llm.worker(transform_output=spoken), hold=Hold.until_decided(10.0)
            )
            agent = PersonaPlexLLMService(engine, settings=settings, delegation=delegation)
            before = [
                VADProcessor(vad_analyzer=SileroVADAnalyzer()),
                ParallelPipeline([whisper_service()], [IdentityFilter()]),
            ]
            async with DelegatedCall(agent, LLMContext(), before) as call:
                question = (read_audio(QUESTION) * 32_767).astype(np.int16)
                call.microphone = np.concatenate([np.zeros(24_000, np.int16), question])
                await call.until(lambda: llm.answers, 120)
                [answer] = llm.answers
                first = speakable(answer)[0]
                await call.until(lambda: first in call.words, 60)
                role, heard = call.messages[0]
                assert role == "user" and "menu" in heard.lower()
                assert call.words.startswith(first)  # nothing invented before it
                assert not call.errors
                print(f"heard {heard!r}, answered {answer!r}")
