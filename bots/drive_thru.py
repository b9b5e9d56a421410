"""A restaurant's order window: both sides of every call are written down.

python -m bots.drive_thru                         a web page on http://localhost:7860
python -m bots.drive_thru --stt deepgram          and what the caller says (DEEPGRAM_API_KEY)

The agent's words come from the model. It hears its caller without making words of it, so for those
a speech-to-text service listens beside it; the conversation is the same with or without.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
    UserTurnStoppedMessage,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.runner.types import RunnerArguments
from pipecat.turns.user_start import TranscriptionUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies, UserTurnStrategies

from bots.call_log import CallRecord, record_folder
from bots.host import BotHost, Call
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.playout import PlayoutMeter

# NVIDIA's example of a service role: employer, name, and all there is to know.
RESTAURANT = (
    "You work for Jerusalem Shakshuka which is a restaurant and your name is Owen Foster. "
    "Information: There are two shakshuka options: Classic (poached eggs, $9.50) and Spicy "
    "(scrambled eggs with jalapenos, $10.25)."
)


def speech_to_text(name: str) -> FrameProcessor | None:
    """The service that writes down the caller's words; None for ``"none"``."""
    if name == "none":
        return None
    from pipecat.services.deepgram.stt import DeepgramSTTService

    service: FrameProcessor = DeepgramSTTService(api_key=os.environ["DEEPGRAM_API_KEY"])
    return service


async def converse(call: Call) -> None:
    """Take one order."""
    await take_order(call, speech_to_text(call.args.stt))


async def take_order(call: Call, stt: FrameProcessor | None) -> None:
    """Talk with one caller, and write the conversation down.

    Args:
        call: The caller.
        stt: Listens to the caller beside the model.
    """
    settings = call.settings
    about = {"role": "system", "content": settings.system_instruction, "voice": settings.voice}
    record = CallRecord(record_folder(call.args.records), about)
    playout = PlayoutMeter()
    agent = PersonaPlexLLMService(
        call.engine, settings=settings, greeting=call.args.greeting, playout=playout
    )
    # What Pipecat knows of the conversation: for tools, for summaries, for a hand-over to a person.
    context = LLMContext([{"role": "system", "content": call.args.prompt}])
    aggregators = LLMContextAggregatorPair(
        context, user_params=LLMUserAggregatorParams(user_turn_strategies=_turns(stt))
    )
    user, assistant = aggregators.user(), aggregators.assistant()

    @user.event_handler("on_user_turn_stopped")  # type: ignore[untyped-decorator]
    async def on_user_turn_stopped(
        aggregator: object, strategy: object, message: UserTurnStoppedMessage
    ) -> None:
        record.turn("user", message.content or "", message.timestamp)

    @assistant.event_handler("on_assistant_turn_stopped")  # type: ignore[untyped-decorator]
    async def on_assistant_turn_stopped(
        aggregator: object, message: AssistantTurnStoppedMessage
    ) -> None:
        record.turn("assistant", message.content, message.timestamp)

    # Beside each other: what the caller's words take to be written must not delay the answer.
    listening: list[FrameProcessor] = [user, agent]
    if stt is not None:
        listening = [ParallelPipeline([stt, user], [agent])]  # type: ignore[no-untyped-call]
    await call.run(
        [call.transport.input(), *listening, call.transport.output(), playout, assistant]
    )


def _turns(stt: FrameProcessor | None) -> UserTurnStrategies:
    """Who says when the caller speaks; never anybody who would interrupt the agent."""
    if stt is None:
        return ExternalUserTurnStrategies(enable_interruptions=False)
    return UserTurnStrategies(
        start=[TranscriptionUserTurnStartStrategy(enable_interruptions=False)],
        stop=[SpeechTimeoutUserTurnStopStrategy()],
    )


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stt",
        choices=("none", "deepgram"),
        default=os.environ.get("PERSONAPLEX_STT") or "none",
        help="who writes down the caller's words; DEEPGRAM_API_KEY for deepgram (default: none; "
        "environment: PERSONAPLEX_STT)",
    )
    parser.add_argument(
        "--records",
        metavar="FOLDER",
        default=os.environ.get("PERSONAPLEX_RECORDS") or "calls",
        help="where each call leaves a file of JSON lines (default: calls; environment: "
        "PERSONAPLEX_RECORDS)",
    )


def _check(args: argparse.Namespace) -> None:
    # argparse does not compare what comes from the environment with the choices.
    if args.stt not in ("none", "deepgram"):
        raise ConfigError(f"PERSONAPLEX_STT is {args.stt!r}; it may be none or deepgram")
    if args.stt == "deepgram":
        if importlib.util.find_spec("deepgram") is None:
            raise ConfigError("--stt deepgram needs a package: pip install 'pipecat-ai[deepgram]'")
        if not os.environ.get("DEEPGRAM_API_KEY"):
            raise ConfigError("--stt deepgram needs DEEPGRAM_API_KEY; it is on deepgram.com")
    record_folder(args.records)


host = BotHost(
    "A restaurant's order window.",
    converse,
    voice="NATF2",
    prompt=RESTAURANT,
    extend=_extend,
    check=_check,
)


async def bot(runner_args: RunnerArguments) -> None:
    """Answer one caller; Pipecat's runner calls this."""
    await host.answer(runner_args)


if __name__ == "__main__":
    sys.exit(host.main())
