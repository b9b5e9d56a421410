"""Agents for other harnesses, driven by stand-ins of these harnesses."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from pipecat_personaplex import Engine, Persona, SamplingParams
from pipecat_personaplex.audio import float_to_pcm16, pcm16_to_float
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, SessionFailed
from pipecat_personaplex.eval.adapters.discrete_time import DiscreteTimeAgent
from pipecat_personaplex.eval.adapters.input_clocked import InputClockedAgent
from pipecat_personaplex.eval.adapters.stepped_call import SteppedCall
from pipecat_personaplex.eval.latency.mulaw import decode_mulaw, encode_mulaw
from tests.golden_data import conversation
from tests.helpers.telephone import from_mulaw, to_mulaw

PERSONA = Persona("NATM1", "You enjoy having a good conversation.")
SAMPLING = SamplingParams(seed=5)
CALLER = conversation("friend").user_pcm[: 12 * FRAME_SAMPLES]


def test_mulaw_is_that_of_the_telephone() -> None:
    samples = np.arange(-32_768, 32_768, 7, dtype=np.int16)
    assert encode_mulaw(pcm16_to_float(samples)) == to_mulaw(samples)
    codes = bytes(range(256))
    assert np.array_equal(float_to_pcm16(decode_mulaw(codes)), from_mulaw(codes))


class TestDiscreteTime:
    def test_a_call(self, engine: Engine) -> None:
        """Every tick is full, time is the audio's, and the same call gives the same audio."""
        heard = to_mulaw(float_to_pcm16(CALLER[::3].copy()))  # 8 kHz; aliasing does not matter
        played = []
        for _ in range(2):
            agent = DiscreteTimeAgent(engine, 200, "NATM1", SAMPLING)
            agent.connect(PERSONA.text_prompt, [], None)
            assert agent.is_connected
            ticks = [
                agent.run_tick(heard[start : start + agent.bytes_per_tick])
                for start in range(0, len(heard), agent.bytes_per_tick)
            ]
            agent.disconnect()
            assert not agent.is_connected
            assert [tick.tick_number for tick in ticks] == list(range(1, 6))
            assert {len(tick.agent_audio_data) for tick in ticks} == {1600}
            played.append(b"".join(tick.agent_audio_data for tick in ticks))
        assert played[0] == played[1]
        assert np.abs(from_mulaw(played[0])).max() > 100
        assert np.abs(from_mulaw(played[0])[:1280]).max() == 0  # two frames of delay

    def test_misuse(self, engine: Engine) -> None:
        with pytest.raises(ConfigError, match="positive integer"):
            DiscreteTimeAgent(engine, 0)
        agent = DiscreteTimeAgent(engine, 200, "NATM1")
        with pytest.raises(ConfigError, match="connect"):
            agent.run_tick(b"")
        with pytest.raises(ConfigError, match="tools"):
            agent.connect("x", tools=[object()])
        agent.connect("x")
        with pytest.raises(ConfigError, match="1600 bytes, not 1601"):
            agent.run_tick(b"\xff" * 1601)
        agent.disconnect()


@dataclass(frozen=True)
class Frame:
    stream: str
    t: int
    data: Any = None


@dataclass(frozen=True)
class Chunk:
    id: str
    t0: int
    dur: int
    data: Any
    text: str = ""
    first: bool = False
    last: bool = False


@dataclass(frozen=True)
class AgentSpec:
    chunk_ms: int = 200
    obs: tuple[str, ...] = ("user.speech",)
    out: str = "policy.speech"
    audio: str | None = None
    sr: int = 16_000


@dataclass(frozen=True)
class Audio:
    samples: array[int]
    sr: int


@pytest.fixture
def gym(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The classes of InteractionGym that an agent sees."""
    package = ModuleType("interaction_gym")
    core, audio = ModuleType("interaction_gym.core"), ModuleType("interaction_gym.audio")
    package.__path__ = []
    for module in (package, core, audio):
        module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec(
            module.__name__, None
        )
        monkeypatch.setitem(sys.modules, module.__name__, module)
    core.__dict__.update(Frame=Frame, Chunk=Chunk, AgentSpec=AgentSpec)
    audio.__dict__.update(Audio=Audio)
    yield


def drive(agent: InputClockedAgent) -> list[Chunk]:
    """A simulation: one step after another, each with the microphone of its window."""
    chunks = []
    size = agent.spec.sr * agent.spec.chunk_ms // 1000
    for step in range(len(CALLER) // size):
        window = float_to_pcm16(CALLER[step * size : (step + 1) * size])
        audio = Audio(array("h", window.tolist()), agent.spec.sr)
        t = (step + 1) * agent.spec.chunk_ms
        frames = agent.act(t, [Frame("user.audio", t, audio), Frame("session", t)])
        assert all(frame.stream == "policy.speech" and frame.t == t for frame in frames)
        chunks += [frame.data for frame in frames]
    return chunks


class TestInputClocked:
    def test_a_call(self, engine: Engine, gym: None) -> None:
        agent = InputClockedAgent(engine, PERSONA, SAMPLING)
        assert agent.spec == AgentSpec(80, audio="user.audio", sr=SAMPLE_RATE)
        chunks = drive(agent)
        agent.close()
        pcm = pcm16_to_float(float_to_pcm16(CALLER))
        alone = engine.converse(PERSONA, pcm, SAMPLING)
        by_time = {chunk.t0: chunk for chunk in chunks}
        for frame in alone.frames:
            chunk = by_time.get((frame.index + 1) * 80)
            if chunk is not None:
                assert list(chunk.data.samples) == float_to_pcm16(frame.pcm).tolist()
                assert chunk.text == frame.text
            else:
                assert not frame.text
        assert len(chunks) >= 6
        assert [chunk.first for chunk in chunks if chunk.id == "a0"].count(True) == 1
        assert agent.describe()["voice"] == "NATM1"

    def test_another_rate(self, engine: Engine, gym: None) -> None:
        agent = InputClockedAgent(engine, PERSONA, SAMPLING)
        with pytest.raises(ConfigError, match="24000 Hz"):
            agent.act(0, [Frame("user.audio", 0, Audio(array("h", [0] * 1280), 16_000))])
        agent.close()

    def test_without_interaction_gym(self, engine: Engine) -> None:
        with pytest.raises(ConfigError, match="install InteractionGym from"):
            InputClockedAgent(engine, PERSONA)


def test_a_closed_call_says_so(engine: Engine) -> None:
    call = SteppedCall(engine, PERSONA, SAMPLING)
    assert len(call.push(CALLER[: 2 * FRAME_SAMPLES + 100])) == 2
    call.close()
    with pytest.raises(SessionFailed):
        call.push(CALLER)
