"""Features of other services that this one lacks: it warns or refuses."""

from __future__ import annotations

from typing import Any

import pytest
from pipecat.frames.frames import LLMContextFrame
from pipecat.pipeline.llm_with_backend import LLMWithBackend
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.llm.backend_llm_worker import BackendLLMWorker

from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import ManualClock, errors, on_call


async def weather(params: FunctionCallParams) -> None:
    """Look out of the window."""
    raise AssertionError("the model calls no functions")


def test_registering_functions_warns_once(fake: FakeEngine, warnings_logged: list[str]):
    service = PersonaPlexLLMService(fake)
    assert not warnings_logged
    service.register_function("weather", weather, cancel_on_interruption=True)
    service.register_function(None, weather)
    assert service.has_function("weather")
    [message] = warnings_logged
    assert message.startswith(f"{service}: tools have no effect, this model calls no functions; ")
    assert "delegation=PersonaPlexLLMService.Delegation(backend=BackendLLMWorker(...))" in message


@pytest.mark.parametrize(("tools", "warned"), [([weather], 1), ([], 0), (None, 0)])
async def test_contexts_with_tools_warn_once(
    fake: FakeEngine, clock: ManualClock, warnings_logged: list[str], tools: Any, warned: int
):
    context = LLMContext() if tools is None else LLMContext(tools=tools)
    context.add_message({"role": "user", "content": "My name is Anna."})
    async with on_call(fake, clock) as (_, pipeline, _):
        for count in (1, 2):
            await pipeline.send(LLMContextFrame(context))
            await pipeline.until_count(LLMContextFrame, count)
        assert not errors(pipeline)
    assert (
        len([message for message in warnings_logged if "tools have no effect" in message]) == warned
    )
    # User messages of a context do not reach the model either.
    assert [session.persona.text_prompt for session in fake.sessions] == [""]


def test_it_declines_to_be_a_frontend(fake: FakeEngine):
    with pytest.raises(ValueError, match=r"cannot be an LLMWithBackend frontend.* calls no tools"):
        LLMWithBackend(frontend=PersonaPlexLLMService(fake), backend="clerk")


def test_it_declines_to_be_a_backend(fake: FakeEngine):
    with pytest.raises(ValueError, match="cannot be an LLMWithBackend backend"):
        BackendLLMWorker(llm=PersonaPlexLLMService(fake), context=LLMContext())
