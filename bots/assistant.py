"""A friendly teacher to talk to: in a browser, in a Daily room, or on the telephone.

python -m bots.assistant                          a web page on http://localhost:7860
python -m bots.assistant -t daily                 a Daily room (DAILY_API_KEY)
python -m bots.assistant -t twilio -x HOST        a telephone number (TWILIO_...)
python -m bots.assistant --stt whisper --backend openai --documents FOLDER
                                                  with clock, calculator, notes and documents
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.runner.types import RunnerArguments

from bots.assistant_tools import INSTRUCTIONS, AssistantTools
from bots.backends import add_backend_options, check_engine, choose_backend
from bots.documents import Documents
from bots.host import BotCall, BotHost
from bots.notes import Notes
from bots.stt import add_stt_options, choose_stt, transcribe, turn_strategies
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.service.delegation.delegation import Delegation
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.playout import PlayoutMeter
from pipecat_personaplex.talk.client_messages import ClientMessages

# The only assistant role that the model was trained on, in NVIDIA's exact words.
TEACHER = (
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and "
    "engaging way."
)


_FILLER = ("One moment.", "Let me check.")


async def converse(call: BotCall) -> None:
    """Talk with one caller."""
    create_stt = call.args.create_stt
    stt = create_stt() if create_stt else None
    playout = PlayoutMeter()
    agent = PersonaPlexLLMService(
        call.engine,
        settings=call.settings,
        greeting=call.args.greeting,
        playout=playout,
        delegation=_delegation(call.args),
    )
    # The model decides by itself when to speak. The aggregators collect the words of both sides
    # into turns; Pipecat sends these to the page, and a backend reads them.
    aggregators = LLMContextAggregatorPair(
        LLMContext(),
        user_params=LLMUserAggregatorParams(
            user_turn_strategies=turn_strategies(transcribed=stt is not None)
        ),
    )
    await call.run(
        [
            call.transport.input(),
            *([transcribe(stt)] if stt else []),
            aggregators.user(),
            ClientMessages(agent),
            agent,
            call.transport.output(),
            playout,
            aggregators.assistant(),
        ]
    )


def _delegation(args: argparse.Namespace) -> Delegation | None:
    if args.backends is None:
        return None
    tools = AssistantTools(args.notes_file, args.document_index)
    backend = args.backends.create(INSTRUCTIONS, tools.all)
    return Delegation(backend=backend, filler=_FILLER)


def _extend(parser: argparse.ArgumentParser) -> None:
    add_stt_options(parser)
    add_backend_options(parser)
    parser.add_argument(
        "--notes",
        metavar="FILE|none",
        default=os.environ.get("PERSONAPLEX_NOTES") or None,
        help="with --backend: the file in which the assistant writes notes down; all callers "
        "share it; none: no notes (default: notes.txt, but none with -t twilio; environment: "
        "PERSONAPLEX_NOTES)",
    )
    parser.add_argument(
        "--documents",
        metavar="FOLDER",
        default=os.environ.get("PERSONAPLEX_DOCUMENTS") or None,
        help="with --backend: a folder of .txt, .md and .rst files that the assistant searches "
        "(environment: PERSONAPLEX_DOCUMENTS)",
    )


def _check(args: argparse.Namespace) -> None:
    args.backends = choose_backend(args)
    if args.documents and args.backends is None:
        raise ConfigError("--documents needs --backend")
    if args.notes not in (None, "none") and args.backends is None:
        raise ConfigError("--notes needs --backend: nothing else writes or reads notes")
    args.document_index = Documents(Path(args.documents)) if args.documents else None
    # On the telephone, notes would reach callers who know nothing of each other.
    notes = args.notes or ("none" if args.transport == "twilio" else "notes.txt")
    args.notes_file = Notes(Path(notes)) if args.backends and notes != "none" else None
    args.create_stt = choose_stt(args)


host = BotHost(
    "A friendly teacher to talk to.",
    converse,
    voice="NATF2",
    prompt=TEACHER,
    extend=_extend,
    check=_check,
    check_engine=check_engine,
)


async def bot(runner_args: RunnerArguments) -> None:
    """Serve one call; Pipecat's runner calls this."""
    await host.serve_call(runner_args)


if __name__ == "__main__":
    sys.exit(host.main())
