"""Scores a run: words, spans and judgements of every call, then both rule sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, UserError
from pipecat_personaplex.eval.items import Event
from pipecat_personaplex.eval.judges import Answer, Judge, StoredJudge
from pipecat_personaplex.eval.run_files import write_json
from pipecat_personaplex.eval.run_folder import Call, RunFolder
from pipecat_personaplex.eval.scoring.aggregate import ItemValues, summarize
from pipecat_personaplex.eval.scoring.item_score import RULES, Heard, Rules, score_item
from pipecat_personaplex.eval.scoring.spans import words_after
from pipecat_personaplex.eval.transcribers import MONOLOGUE, Transcriber, read_chunks
from pipecat_personaplex.eval.voice_activity import Detector
from pipecat_personaplex.words import Word

_QUIRK_RATE = 16_000  # what the published backchannel script takes 24 kHz for
FILES = "files:"


@dataclass(frozen=True)
class Scorer:
    """How a run is scored.

    Attributes:
        asr: Name of the transcriber, as ``--asr`` gives it.
        transcriber: The transcriber; None for the monologue and for files.
        vad: Name of the detector.
        detector: The detector.
        judge: The judge; None for no judgements.
        rules: The rule sets. Those that the run's scores of this name already have are added.
    """

    asr: str
    transcriber: Transcriber | None
    vad: str
    detector: Detector
    judge: Judge | None = None
    rules: tuple[Rules, ...] = RULES

    @property
    def name(self) -> str:
        """Names the file of the scores."""
        judge = self.judge.name if self.judge else "none"
        return "_".join(safe_name(part) for part in (self.asr, self.vad, judge))


def safe_name(text: str) -> str:
    """A file name for a text that a user gave: a path becomes its last part and a hash."""
    plain = "".join(c if c.isalnum() or c in "-." else "-" for c in text)
    if "/" not in text and len(plain) <= 60:
        return plain
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{plain.rsplit('-', 1)[-1][-40:]}-{digest}"


def score_run(
    run: RunFolder, scorer: Scorer, progress: Callable[[int, int], object] | None = None
) -> dict[str, Any]:
    """Score all finished calls and write ``scores/NAME.json``.

    A rule set of an existing file is computed again, so that both are of the same calls.

    Args:
        run: The run.
        scorer: How to score.
        progress: Called with (done, total).

    Returns:
        The content of the file: settings, a summary for each rule set, and the records of calls.

    Raises:
        UserError: The run has no finished calls, a transcript is missing, or a file of the run is
            damaged.
    """
    calls = [call for call in run.calls() if not call.error]
    if not calls:
        raise UserError(f"{run.path} has no finished calls; `personaplex eval run` makes them")
    stored = StoredJudge(scorer.judge, run.path / "judge") if scorer.judge else None
    earlier = run.scores_of(scorer.name)
    wanted = {*scorer.rules, *(earlier["summary"] if earlier else ())}
    rule_sets = [rules for rules in RULES if rules in wanted]
    values: dict[Rules, list[ItemValues]] = {rules: [] for rules in rule_sets}
    records = []
    for index, call in enumerate(calls):
        words = transcribe(run, call, scorer)
        heard = _hear(run, call, words, scorer)
        judged = _judge(call, heard, stored) if stored else {}
        record: dict[str, Any] = {
            "id": call.id,
            "seed": call.seed,
            "group": call.group,
            "words": [[word.word, round(word.start, 3), round(word.end, 3)] for word in words],
            "spans": [[round(span.start, 3), round(span.end, 3)] for span in heard.spans],
        }
        for rules in rule_sets:
            found = score_item(call.events, heard, rules, call.reference.get("backchannels"))
            found += _judged_values(judged, found, rules)
            record[rules] = [[metric, round(value, 6)] for metric, value in found]
            values[rules].append(ItemValues(call.id, call.group, call.seed, found))
        records.append(record)
        if progress is not None:
            progress(index + 1, len(calls))
    result = {
        "asr": scorer.asr,
        "vad": scorer.vad,
        "judge": scorer.judge.name if scorer.judge else "none",
        "calls": len(calls),
        "summary": {
            rules: {
                key: summary.as_dict()
                for key, summary in summarize(values[rules], rules == "compat").items()
            }
            for rules in rule_sets
        },
        "records": records,
    }
    write_json(run.path / "scores" / f"{scorer.name}.json", result)
    return result


def transcribe(run: RunFolder, call: Call, scorer: Scorer) -> list[Word]:
    """The words of a call: stored ones, or those that the transcriber finds, which are stored.

    Raises:
        UserError: The transcript is missing.
    """
    if scorer.asr == MONOLOGUE:
        words = run.words(call)
        if words is None:
            raise UserError(f"{run.file('words', call, '.json')} is missing")
        return words
    if scorer.asr.startswith(FILES):
        path = Path(scorer.asr.removeprefix(FILES)) / str(call.seed) / f"{call.id}.json"
        try:
            return read_chunks(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"--asr {scorer.asr}: {path} is missing") from None
        except (ValueError, ConfigError) as error:
            raise UserError(f"--asr {scorer.asr}: {path}: {error}") from None
    folder = f"asr/{safe_name(scorer.asr)}"
    words = run.words(call, folder)
    if words is None:
        assert scorer.transcriber is not None
        words = scorer.transcriber(run.audio(call), SAMPLE_RATE)
        run.write_words(call, folder, words)
    return words


def _hear(run: RunFolder, call: Call, words: Sequence[Word], scorer: Scorer) -> Heard:
    pcm = run.audio(call)
    needs_quirk = any(event.kind == "narration" for event in call.events)
    tails: dict[int, Sequence[Word]] = {}
    if scorer.transcriber is not None:
        for index, event in enumerate(call.events):
            if event.kind == "interruption":
                tails[index] = _tail(run, call, event, index, scorer)
    return Heard(
        words,
        scorer.detector(pcm, SAMPLE_RATE),
        scorer.detector(pcm, _QUIRK_RATE) if needs_quirk else (),
        call.seconds,
        tails,
    )


def _tail(run: RunFolder, call: Call, event: Event, index: int, scorer: Scorer) -> list[Word]:
    """Words in the audio after an interruption alone, as the published script crops it."""
    folder = f"asr/{safe_name(scorer.asr)}/tail-{index}"
    words = run.words(call, folder)
    if words is None:
        assert scorer.transcriber is not None
        first = int(event.end * SAMPLE_RATE)
        found = scorer.transcriber(run.audio(call)[first:], SAMPLE_RATE)
        words = [Word(w.word, w.start + event.end, w.end + event.end) for w in found]
        run.write_words(call, folder, words)
    return words


def _judge(call: Call, heard: Heard, judge: StoredJudge) -> Mapping[str, tuple[int | None, int]]:
    """Rating and attempts of the answer to each event that needs one, by kind."""
    ratings: dict[str, tuple[int | None, int]] = {}
    for index, event in enumerate(call.events):
        if event.kind in ("turn_end", "interruption") and event.kind not in ratings:
            later = [each.start for each in call.events[index + 1 :] if each.start > event.end]
            answer = [
                word.word
                for word in words_after(heard.words, event.end)
                if word.start < min([call.seconds, *later])
            ]
            question = Answer(call.prompt, event.text, " ".join(answer), call.wanted)
            ratings[event.kind] = judge.rate(question)
    return ratings


def _judged_values(
    judged: Mapping[str, tuple[int | None, int]], found: Sequence[tuple[str, float]], rules: Rules
) -> list[tuple[str, float]]:
    """The ratings. In ``compat``, each failed attempt counts the takeover of an interruption again.

    The published script appends it in the loop that retries the judge.
    """
    values = []
    for kind, (rating, attempts) in judged.items():
        if rating is not None:
            values.append((f"{kind}.judge", float(rating)))
        if rules == "compat" and kind == "interruption":
            repeated = [pair for pair in found if pair[0] == "interruption.tor"]
            values += repeated * (attempts - 1)
    return values
