"""Takes orders for a restaurant and writes a transcript of every call.

python -m bots.drive_thru                         a web page on http://localhost:7860
python -m bots.drive_thru --stt deepgram          with the caller's words (DEEPGRAM_API_KEY)

The model outputs the agent's words, but no transcript of the caller. For the caller's words a
speech-to-text service runs in parallel; the conversation does not depend on it.
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
from bots.host import BotCall, BotHost
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.playout import PlayoutMeter

# NVIDIA's example of a service role: employer, name, and all facts that the agent may state.
RESTAURANT = (
    "You work for Jerusalem Shakshuka which is a restaurant and your name is Owen Foster. "
    "Information: There are two shakshuka options: Classic (poached eggs, $9.50) and Spicy "
    "(scrambled eggs with jalapenos, $10.25)."
)


def speech_to_text(name: str) -> FrameProcessor | None:
    """Create the service that transcribes the caller; None for ``"none"``."""
    if name == "none":
        return None
    from pipecat.services.deepgram.stt import DeepgramSTTService

    service: FrameProcessor = DeepgramSTTService(api_key=os.environ["DEEPGRAM_API_KEY"])
    return service


async def converse(call: BotCall) -> None:
    """Talk with one caller."""
    await take_order(call, speech_to_text(call.args.stt))


async def take_order(call: BotCall, stt: FrameProcessor | None) -> None:
    """Talk with one caller and write the transcript.

    Args:
        call: The call.
        stt: Transcribes the caller; None leaves the caller's words out of the transcript.
    """
    settings = call.settings
    about = {"role": "system", "content": settings.system_instruction, "voice": settings.voice}
    record = CallRecord(record_folder(call.args.records), about)
    playout = PlayoutMeter()
    agent = PersonaPlexLLMService(
        call.engine, settings=settings, greeting=call.args.greeting, playout=playout
    )
    # Pipecat's copy of the conversation, for example for a summary or a hand-over to a person.
    context = LLMContext([{"role": "system", "content": call.args.prompt}])
    aggregators = LLMContextAggregatorPair(
        context, user_params=LLMUserAggregatorParams(user_turn_strategies=_turn_strategies(stt))
    )
    user, assistant = aggregators.user(), aggregators.assistant()

    @user.event_handler("on_user_turn_stopped")  # type: ignore[untyped-decorator]
    async def on_user_turn_stopped(
        aggregator: object, strategy: object, message: UserTurnStoppedMessage
    ) -> None:
        record.add_turn("user", message.content or "", message.timestamp)

    @assistant.event_handler("on_assistant_turn_stopped")  # type: ignore[untyped-decorator]
    async def on_assistant_turn_stopped(
        aggregator: object, message: AssistantTurnStoppedMessage
    ) -> None:
        record.add_turn("assistant", message.content, message.timestamp)

    # In parallel: the time that a transcription takes must not delay the model.
    listening: list[FrameProcessor] = [user, agent]
    if stt is not None:
        listening = [ParallelPipeline([stt, user], [agent])]  # type: ignore[no-untyped-call]
    await call.run(
        [call.transport.input(), *listening, call.transport.output(), playout, assistant]
    )


def _turn_strategies(stt: FrameProcessor | None) -> UserTurnStrategies:
    """How the caller's turns are detected; none of these strategies interrupts the agent."""
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
        help="speech-to-text service for the caller's words; deepgram needs DEEPGRAM_API_KEY "
        "(default: none; environment: PERSONAPLEX_STT)",
    )
    parser.add_argument(
        "--records",
        metavar="FOLDER",
        default=os.environ.get("PERSONAPLEX_RECORDS") or "calls",
        help="folder for the transcripts, a file of JSON lines for each call (default: calls; "
        "environment: PERSONAPLEX_RECORDS)",
    )


def _check(args: argparse.Namespace) -> None:
    # argparse does not check a default, which may come from the environment.
    if args.stt not in ("none", "deepgram"):
        raise ConfigError(f"PERSONAPLEX_STT is {args.stt!r}; it must be none or deepgram")
    if args.stt == "deepgram":
        if importlib.util.find_spec("deepgram") is None:
            raise ConfigError("--stt deepgram needs a package: pip install 'pipecat-ai[deepgram]'")
        if not os.environ.get("DEEPGRAM_API_KEY"):
            raise ConfigError("--stt deepgram needs DEEPGRAM_API_KEY; get one on deepgram.com")
    record_folder(args.records)


host = BotHost(
    "Takes orders for a restaurant.",
    converse,
    voice="NATF2",
    prompt=RESTAURANT,
    extend=_extend,
    check=_check,
)


async def bot(runner_args: RunnerArguments) -> None:
    """Serve one call; Pipecat's runner calls this."""
    await host.serve_call(runner_args)


if __name__ == "__main__":
    sys.exit(host.main())
