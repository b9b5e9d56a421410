"""The smallest complete bot: open http://localhost:7860 and talk to a teacher.

python -m bots.minimal
"""

from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker, ProcessorUnusablePolicy
from pipecat.runner.run import main
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.workers.runner import WorkerRunner

from pipecat_personaplex import Engine, PersonaPlexLLMService, PlayoutMeter

# "auto": NVIDIA's 7B if there is a GPU and access to the weights, else the small bundled model.
engine = Engine.load("auto", progress=True)


def webrtc() -> TransportParams:
    """Settings of the audio connection to the browser."""
    # By default Pipecat fills gaps with silence, and the call stays late by as much.
    return TransportParams(
        audio_in_enabled=True, audio_out_enabled=True, audio_out_auto_silence=False
    )


async def bot(runner_args: RunnerArguments) -> None:
    """Serve one call; Pipecat's runner calls this for each caller."""
    transport: BaseTransport = await create_transport(runner_args, {"webrtc": webrtc})
    playout = PlayoutMeter()
    agent = PersonaPlexLLMService(
        engine,  # one engine for all callers of the process
        settings=PersonaPlexLLMService.Settings(
            voice="NATF2",
            system_instruction="You are a wise and friendly teacher. Answer questions or provide "
            "advice in a clear and engaging way.",
        ),
        greeting="Hi, I am your teacher. What shall we learn?",
        playout=playout,
    )
    worker = PipelineWorker(
        Pipeline([transport.input(), agent, transport.output(), playout]),
        params=PipelineParams(audio_in_sample_rate=24_000, audio_out_sample_rate=24_000),
        processor_unusable_policy=ProcessorUnusablePolicy.END,
    )

    async def hang_up(transport: BaseTransport, client: object) -> None:
        await worker.cancel()

    transport.add_event_handler("on_client_disconnected", hang_up)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    with engine:
        main()
