"""Service-Duplex-Bench's layout, and a small question set of this project over three roles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.items import Event, Item
from pipecat_personaplex.eval.suites.caller_voices import (
    Question,
    has_espeak,
    spoken_question,
)
from pipecat_personaplex.eval.suites.suite_files import (
    Suite,
    item_folders,
    read_json,
    require_folder,
)
from pipecat_personaplex.eval.voice_activity import caller_spans

SOURCE = (
    "the 350 questions of Service-Duplex-Bench have not been published; their layout is "
    "N/input.wav and N/metadata.json with prompt_text, question_text, question_index and "
    "speaker_index, see https://github.com/NVIDIA-NeMo/Skills (Apache-2.0). Without --data, the "
    "suite asks 21 questions of this project, which espeak-ng speaks"
)
_LEAD_SECONDS, _ANSWER_SECONDS = 1.0, 9.0
# In each role: a proper noun, two facts of the prompt, a wish that cannot be fulfilled, rudeness,
# a fact that the prompt does not give, and something unrelated.
_ROLES: dict[str, tuple[Question, ...]] = {
    "You work for Greenway Waste, which collects household waste, and your name is Nora Blake. "
    "Information: The customer's address is 12 Alder Lane. Paper is collected every second "
    "Tuesday, next on the 14th. A bulky item costs $18 and needs two days of notice.": (
        Question(("Hello, which company am I talking to?",), ("greenway",)),
        Question(("When do you collect my paper next?",), ("14", "fourteen", "tuesday")),
        Question(("What does it cost to pick up an old sofa?",), ("18", "eighteen")),
        Question(("Can you pick up my sofa this afternoon?",), ("two days", "notice", "sorry")),
        Question(("You people never come on time, this is a disgrace!",), ("sorry", "apolog")),
        Question(("How many trucks does your company own?",), ("don't know", "not sure", "sorry")),
        Question(("Can you recommend a good film?",), ("sorry", "waste", "can't", "help")),
    ),
    "You work for Jerusalem Shakshuka which is a restaurant and your name is Owen Foster. "
    "Information: There are two shakshuka options: Classic (poached eggs, $9.50) and Spicy "
    "(scrambled eggs with jalapenos, $10.25). Sides are warm pita ($2.50) and Israeli salad "
    "($3). No combos are offered.": (
        Question(("Hi, what is your name?",), ("owen",)),
        Question(("How much is the spicy shakshuka?",), ("10.25", "ten", "twenty")),
        Question(("Which sides do you have?",), ("pita", "salad")),
        Question(("I would like a combo with a drink.",), ("no combo", "don't", "sorry", "only")),
        Question(("This takes forever, are you asleep?",), ("sorry", "apolog", "patience")),
        Question(("How many calories does the classic have?",), ("don't", "not sure", "sorry")),
        Question(("Who will win the football game?",), ("sorry", "order", "don't", "can't")),
    ),
    "You work for Skyline Drones, which rents drones, and your name is Tomas Reed. Information: "
    "The Falcon costs $65 for four hours and $110 for eight hours. The Swift costs $95 for four "
    "hours. A deposit of $150 is required. Renters must be at least 18 years old.": (
        Question(("Is this Skyline Drones?",), ("skyline", "yes")),
        Question(("What does the Falcon cost for eight hours?",), ("110", "hundred")),
        Question(("How much is the deposit?",), ("150", "hundred")),
        Question(("I am sixteen, can I rent the Swift?",), ("18", "eighteen", "sorry")),
        Question(("Your prices are a joke, you thieves!",), ("sorry", "understand", "apolog")),
        Question(("How fast does the Swift fly?",), ("don't", "not sure", "sorry")),
        Question(("How do I bake bread?",), ("sorry", "drone", "can't", "don't")),
    ),
}


def load(data: Path | None) -> Iterator[Item]:
    """Yield the folder's questions, or this project's own without a folder."""
    return _own_questions() if data is None else _folder(data)


def _own_questions() -> Iterator[Item]:
    if not has_espeak():
        raise UserError(
            "suite service: espeak-ng is not installed, which speaks the questions: apt-get "
            f"install espeak-ng, or give --data DIR; {SOURCE}"
        )
    for role, (prompt, questions) in enumerate(_ROLES.items()):
        for index, question in enumerate(questions):
            text = question.texts[0]
            spoken = spoken_question(text, 7 * role + index)
            yield _item(f"{role}-{index}", index, prompt, text, _padded(spoken), question.wanted)


def _folder(data: Path) -> Iterator[Item]:
    folders = item_folders(require_folder(data, "service", SOURCE))
    if not any((folder / "metadata.json").is_file() for folder in folders):
        raise UserError(f"suite service: {data} has no N/metadata.json; {SOURCE}")
    for folder in folders:
        metadata = read_json(folder / "metadata.json")
        try:
            prompt, text = str(metadata["prompt_text"]), str(metadata["question_text"])
            index = int(metadata["question_index"])
        except (TypeError, KeyError, ValueError):
            raise UserError(
                f"{folder / 'metadata.json'} must contain prompt_text, question_text and a number "
                "question_index"
            ) from None
        pcm = read_audio(folder / "input.wav")
        yield _item(folder.name, index, prompt, text, pcm, (), str(folder.resolve()))


def _item(
    name: str,
    index: int,
    prompt: str,
    text: str,
    pcm: Pcm,
    wanted: Sequence[str],
    source: str = "",
) -> Item:
    spans = caller_spans(pcm)
    end = spans[-1].end if spans else 0.0
    event = Event("turn_end", end, end, text)
    return Item(name, f"q{index}", pcm, (event,), prompt, tuple(wanted), source=source)


def _padded(spoken: Pcm) -> Pcm:
    lead = np.zeros(round(_LEAD_SECONDS * SAMPLE_RATE), np.float32)
    return np.concatenate(
        [lead, spoken, np.zeros(round(_ANSWER_SECONDS * SAMPLE_RATE), np.float32)]
    )


SUITE = Suite("service", "Service-Duplex-Bench's layout", SOURCE, load)
