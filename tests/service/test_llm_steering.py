"""Texts that the caller may cut, and holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from pipecat.frames.frames import (
    EndFrame,
    InputAudioRawFrame,
    InterruptionFrame,
    SpeechOutputAudioRawFrame,
    TTSSpeakFrame,
    TTSTextFrame,
    UserMuteStartedFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)

from pipecat_personaplex.errors import ConfigError, SessionFailed
from pipecat_personaplex.interface import ALL_FEATURES
from pipecat_personaplex.service import PersonaPlexHoldFrame, PersonaPlexReleaseFrame
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.engines import FakeEngine, FakeSession
from tests.helpers.pipelines import Events, ManualClock, RunningPipeline, errors, on_call, tone

TEXT = "We are open until nine tonight, and until six on Sundays."
SILENCE = np.zeros(1_920, dtype=np.int16)


class Talk:
    """A call with one session, frame by frame."""

    def __init__(
        self,
        session: FakeSession,
        service: PersonaPlexLLMService,
        pipeline: RunningPipeline,
        events: Events,
    ):
        self.session = session
        self.service = service
        self.pipeline = pipeline
        self.events = events

    async def frames(self, count: int, sound: np.ndarray = SILENCE) -> None:
        """Let the caller make 80 ms of sound so many times, and wait for the agent's."""
        for _ in range(count):
            played = len(self.pipeline.seen(SpeechOutputAudioRawFrame))
            await self.pipeline.speak(sound, chunk=0.08)
            await self.pipeline.until_count(SpeechOutputAudioRawFrame, played + 1)

    @property
    def words(self) -> str:
        return "".join(frame.text for frame in self.pipeline.seen(TTSTextFrame))


@asynccontextmanager
async def talk(fake: FakeEngine, clock: ManualClock) -> AsyncIterator[Talk]:
    async with on_call(fake, clock) as (service, pipeline, events):
        yield Talk(fake.sessions[0], service, pipeline, events)
        await pipeline.end_while_time_passes()


VOICE = tone(0.08)


async def test_a_text_that_is_said_has_a_start_and_an_end(fake: FakeEngine, clock: ManualClock):
    async with talk(fake, clock) as call:
        call.service.say("One moment please.")
        assert call.session.said_when == ["pause"]
        await call.frames(8)
        [speech] = call.session.speeches
        await call.pipeline.until(lambda: call.events.named("on_speech_done"))
        assert [name for name, *_ in call.events.seen[1:]] == [
            "on_speech_started",
            "on_speech_done",
        ]
        assert call.events.named("on_speech_started") == [(speech,)]
        assert call.events.named("on_speech_done") == [(speech,)]
        assert (speech.state, speech.spoken) == ("said", 3)


async def test_a_caller_who_speaks_cuts_the_text_and_those_behind_it(
    fake: FakeEngine, clock: ManualClock
):
    async with talk(fake, clock) as call:
        call.service.say(TEXT)
        call.service.say("Shall I reserve a table?")
        await call.frames(2)
        await call.frames(2, VOICE)  # 0.16 s: a cough
        assert not call.session.hushed
        await call.frames(2)
        await call.frames(3, VOICE)
        await call.pipeline.until(lambda: len(call.events.named("on_speech_cut")) == 2)
        [first, second] = call.session.speeches
        assert call.session.hushed == [first, second]
        (text, spoken), (other, none) = call.events.named("on_speech_cut")
        assert (text, other, none) == (TEXT, "Shall I reserve a table?", 0)
        assert spoken == first.spoken > 0
        await call.frames(2)
        # The transcript has what was spoken, and no more.
        assert call.words == " ".join(TEXT.split()[:spoken])
        assert not call.events.named("on_speech_done")
        assert [one.text for (one,) in call.events.named("on_speech_started")] == [TEXT]


async def test_a_text_that_waits_for_a_pause_is_not_cut(fake: FakeEngine, clock: ManualClock):
    async with talk(fake, clock) as call:
        fake.step.clear()  # the text stays in the state "waiting"
        call.service.say(TEXT)
        await call.pipeline.speak(np.tile(VOICE, 4), chunk=0.08)
        assert not call.session.hushed
        fake.step.set()


@pytest.mark.parametrize("who", ["caller", "interruption", "hush"])
async def test_nothing_cuts_the_text_of_a_frame(fake: FakeEngine, clock: ManualClock, who: str):
    async with talk(fake, clock) as call:
        await call.pipeline.send(TTSSpeakFrame("Thank you for calling, and goodbye."))
        await call.pipeline.until_count(TTSSpeakFrame, 1)
        await call.frames(1)
        if who == "caller":
            await call.frames(5, VOICE)
        elif who == "interruption":
            await call.pipeline.send(InterruptionFrame())
            await call.pipeline.until_count(InterruptionFrame, 1)
        else:
            call.service.hush()
        await call.frames(6)
        await call.pipeline.until(lambda: call.events.named("on_speech_done"))
        assert not call.session.hushed


async def test_an_interruption_cuts_the_text(fake: FakeEngine, clock: ManualClock):
    async with talk(fake, clock) as call:
        call.service.say(TEXT)
        await call.frames(2)
        await call.pipeline.send(InterruptionFrame())
        await call.pipeline.until(lambda: call.events.named("on_speech_cut"))


async def test_hush_cuts_what_has_not_begun_too(fake: FakeEngine, clock: ManualClock):
    async with talk(fake, clock) as call:
        call.service.say(TEXT)
        call.service.hush()
        await call.pipeline.until(lambda: call.events.named("on_speech_cut"))
        assert call.events.named("on_speech_cut") == [(TEXT, 0)]
        assert not call.events.named("on_speech_started")


@pytest.mark.parametrize("kind", ["vad", "turn"])
async def test_with_a_vad_its_reports_decide(fake: FakeEngine, clock: ManualClock, kind: str):
    starts = {
        "vad": VADUserStartedSpeakingFrame(start_secs=0.2),
        "turn": UserStartedSpeakingFrame(),
    }
    stops = {"vad": VADUserStoppedSpeakingFrame(), "turn": UserStoppedSpeakingFrame()}
    async with talk(fake, clock) as call:
        await call.pipeline.send(stops[kind])
        await call.pipeline.until_count(type(stops[kind]), 1)
        call.service.say(TEXT)
        await call.frames(4, VOICE)  # loud, and according to the VAD not speech
        assert not call.session.hushed
        await call.pipeline.send(starts[kind])
        await call.pipeline.until_count(type(starts[kind]), 1)
        await call.frames(1 if kind == "vad" else 3)
        await call.pipeline.until(lambda: call.events.named("on_speech_cut"))


async def test_a_caller_who_is_muted_speaks_no_longer(fake: FakeEngine, clock: ManualClock):
    async with talk(fake, clock) as call:
        await call.pipeline.send(VADUserStartedSpeakingFrame(start_secs=0.2))
        await call.frames(1)
        await call.pipeline.send(UserMuteStartedFrame())  # a muted caller's end is not reported
        await call.pipeline.until_count(UserMuteStartedFrame, 1)
        call.service.say("One moment please.")
        await call.frames(8)
        await call.pipeline.until(lambda: call.events.named("on_speech_done"))
        assert not call.session.hushed


async def test_the_end_does_not_wait_for_a_text_that_was_cut(fake: FakeEngine, clock: ManualClock):
    async with talk(fake, clock) as call:
        call.service.say("word " * 60)
        await call.frames(2)
        await call.pipeline.send(EndFrame())
        for _ in range(3):
            # Queued at the service: the worker sends nothing after an EndFrame until it has passed.
            call.pipeline.clock.now += 0.08
            await call.service.queue_frame(InputAudioRawFrame(VOICE.tobytes(), 24_000, 1))
        await call.pipeline.until(lambda: call.events.named("on_speech_cut"))
    assert not fake.open_sessions


async def test_a_session_that_fails_cuts_its_texts(fake: FakeEngine, clock: ManualClock):
    async with talk(fake, clock) as call:
        call.service.say(TEXT)
        await call.frames(2)
        fake.fail(SessionFailed("NaN"))
        await call.pipeline.until(lambda: call.events.named("on_session_ended"))
        [(text, spoken)] = call.events.named("on_speech_cut")
        assert text == TEXT and 0 < spoken < len(TEXT.split())


async def test_hold_and_release_reach_the_session(fake: FakeEngine, clock: ManualClock):
    async with talk(fake, clock) as call:
        call.service.hold(1.5)
        call.service.release()
        await call.pipeline.send(PersonaPlexHoldFrame(seconds=0.5))
        await call.pipeline.send(PersonaPlexReleaseFrame())
        await call.pipeline.until_count(PersonaPlexReleaseFrame, 1)
        assert call.session.holds == [1.5, 0.0, 0.5, 0.0]
        assert not PersonaPlexReleaseFrame().interruptible
        assert not PersonaPlexHoldFrame(1.0).interruptible


async def test_a_hold_of_an_invalid_length_is_refused(fake: FakeEngine, clock: ManualClock):
    async with talk(fake, clock) as call:
        with pytest.raises(ConfigError):
            call.service.hold(31)
        await call.pipeline.send(PersonaPlexHoldFrame(seconds=-1))
        await call.pipeline.until(lambda: errors(call.pipeline))
        assert "PersonaPlexHoldFrame" in errors(call.pipeline)[0].error
        assert call.service.is_usable and not call.session.holds


async def test_an_engine_that_cannot_steer_refuses(clock: ManualClock):
    with FakeEngine(features=ALL_FEATURES - {"say", "hold"}) as fake:
        async with talk(fake, clock) as call:
            call.service.say("Hello.")
            await call.pipeline.until(lambda: errors(call.pipeline))
            assert "a text of 6 characters cannot be spoken" in errors(call.pipeline)[0].error
            with pytest.raises(ConfigError):
                call.service.hold(1)
            call.service.hush()
            assert call.service.is_usable
            await call.pipeline.end()  # the clock stands still: nothing is waited for


async def test_a_hold_needs_a_session(fake: FakeEngine):
    service = PersonaPlexLLMService(fake)
    for act in (lambda: service.hold(1), service.release):
        with pytest.raises(SessionFailed, match="no open session"):
            act()
    service.hush()
