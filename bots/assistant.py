"""A friendly teacher to talk to: in a browser, in a Daily room, or on the telephone.

python -m bots.assistant                          a web page on http://localhost:7860
python -m bots.assistant -t daily                 a Daily room (DAILY_API_KEY)
python -m bots.assistant -t twilio -x HOST        a telephone number (TWILIO_...)
"""

from __future__ import annotations

import sys

from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.runner.types import RunnerArguments
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies

from bots.host import BotCall, BotHost
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.playout import PlayoutMeter
from pipecat_personaplex.talk.client_messages import ClientMessages

# The only assistant role that the model was trained on, in NVIDIA's exact words.
TEACHER = (
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and "
    "engaging way."
)


async def converse(call: BotCall) -> None:
    """Talk with one caller."""
    playout = PlayoutMeter()
    agent = PersonaPlexLLMService(
        call.engine, settings=call.settings, greeting=call.args.greeting, playout=playout
    )
    # The model decides by itself when to speak. The aggregators collect the agent's words into
    # turns, and Pipecat sends these to the page.
    aggregators = LLMContextAggregatorPair(
        LLMContext(),
        user_params=LLMUserAggregatorParams(
            user_turn_strategies=ExternalUserTurnStrategies(enable_interruptions=False)
        ),
    )
    await call.run(
        [
            call.transport.input(),
            aggregators.user(),
            ClientMessages(agent),
            agent,
            call.transport.output(),
            playout,
            aggregators.assistant(),
        ]
    )


host = BotHost("A friendly teacher to talk to.", converse, voice="NATF2", prompt=TEACHER)


async def bot(runner_args: RunnerArguments) -> None:
    """Serve one call; Pipecat's runner calls this."""
    await host.serve_call(runner_args)


if __name__ == "__main__":
    sys.exit(host.main())
