"""An order window: takes orders for a restaurant and writes a transcript of every call.

python -m bots.drive_thru                         a web page on http://localhost:7860
python -m bots.drive_thru --stt whisper           with the caller's words in the transcript
python -m bots.drive_thru --stt whisper --backend openai
                                                  orders in a database, shown on /orders
python -m bots.drive_thru --receipts              the receipts of all placed orders

The model outputs the agent's words, but no transcript of the caller. For the caller's words a
speech-to-text service runs beside it. With these words, a backend LLM with tools takes the order
while the agent talks; without a backend, nothing but the transcript is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
    UserTurnStoppedMessage,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.processors.frameworks.rtvi import RTVIServerMessageFrame
from pipecat.runner.types import RunnerArguments

from bots.backends import add_backend_options, check_engine, choose_backend
from bots.call_log import CallRecord, record_folder
from bots.host import BotCall, BotHost
from bots.order_window.desk import OrderDesk, add_order_options, open_desk, print_receipts
from bots.order_window.order import Order
from bots.stt import add_stt_options, choose_stt, transcribe, turn_strategies
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.service.delegation.delegation import Delegation
from pipecat_personaplex.service.delegation.hold import Hold
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.playout import PlayoutMeter

# NVIDIA's example of a service role: employer, name, and all facts that the agent may state.
RESTAURANT = (
    "You work for Jerusalem Shakshuka which is a restaurant and your name is Owen Foster. "
    "Information: There are two shakshuka options: Classic (poached eggs, $9.50) and Spicy "
    "(scrambled eggs with jalapenos, $10.25)."
)
_AGENT = "Owen Foster"
_FILLER = ("One moment, please.", "Let me check.")
_FILLER_SECONDS = 1.5  # after the caller's turn


async def converse(call: BotCall) -> None:
    """Talk with one caller."""
    create_stt = call.args.create_stt
    await take_order(call, create_stt() if create_stt else None, call.args.desk)


async def take_order(
    call: BotCall, stt: FrameProcessor | None, desk: OrderDesk | None = None
) -> None:
    """Talk with one caller and write the transcript.

    Args:
        call: The call.
        stt: Transcribes the caller; None leaves the caller's words out of the transcript.
        desk: Takes the order; None for a conversation without consequences.
    """
    settings = call.settings
    about = {"role": "system", "content": settings.system_instruction, "voice": settings.voice}
    record = CallRecord(record_folder(call.args.records), about)
    playout = PlayoutMeter()

    async def show(order: Order) -> None:
        """Send the order to the caller's page."""
        message = {"type": "order", "order": order.as_message()}
        await agent.push_frame(RTVIServerMessageFrame(data=message))

    agent = PersonaPlexLLMService(
        call.engine,
        settings=settings,
        greeting=call.args.greeting,
        playout=playout,
        # The order has the name of its transcript.
        delegation=None
        if desk is None
        else Delegation(
            backend=await desk.backend(record.path.stem, show),
            # Nearly every turn is part of an order: the agent must confirm nothing by itself.
            hold=Hold.until_decided(router=lambda text: True),
            filler=_FILLER,
            filler_after=_FILLER_SECONDS,
        ),
    )
    # Pipecat's copy of the conversation: the backend reads it.
    context = LLMContext([{"role": "system", "content": call.args.prompt}])
    aggregators = LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(
            user_turn_strategies=turn_strategies(transcribed=stt is not None)
        ),
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

    await call.run(
        [
            call.transport.input(),
            *([transcribe(stt)] if stt else []),
            user,
            agent,
            call.transport.output(),
            playout,
            assistant,
        ]
    )


def _extend(parser: argparse.ArgumentParser) -> None:
    add_stt_options(parser)
    add_backend_options(parser)
    add_order_options(parser)
    parser.add_argument(
        "--records",
        metavar="FOLDER",
        default=os.environ.get("PERSONAPLEX_RECORDS") or "calls",
        help="folder for the transcripts, a file of JSON lines for each call (default: calls; "
        "environment: PERSONAPLEX_RECORDS)",
    )


def _check(args: argparse.Namespace) -> None:
    if args.receipts:
        print_receipts(Path(args.orders))
        sys.exit()
    record_folder(args.records)
    backends = choose_backend(args)
    if args.menu and not backends:
        raise ConfigError("--menu needs --backend: without one, the menu is in the --prompt")
    args.create_stt = choose_stt(args)
    args.desk = open_desk(args, backends) if backends else None
    if args.desk and args.prompt == RESTAURANT:
        args.prompt = args.desk.role(_AGENT)


host = BotHost(
    "Takes orders for a restaurant.",
    converse,
    voice="NATF2",
    prompt=RESTAURANT,
    extend=_extend,
    check=_check,
    check_engine=check_engine,
)


async def bot(runner_args: RunnerArguments) -> None:
    """Serve one call; Pipecat's runner calls this."""
    await host.serve_call(runner_args)


if __name__ == "__main__":
    sys.exit(host.main())
