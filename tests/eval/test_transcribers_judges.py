"""Transcribers and judges: real ones, a loopback server, plugins, and what is missing."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
import pytest

from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, UserError
from pipecat_personaplex.eval import plugins
from pipecat_personaplex.eval.judges import (
    Answer,
    ChatJudge,
    RuleJudge,
    StoredJudge,
    find_judge,
    parse_rating,
)
from pipecat_personaplex.eval.transcribers import chunks_of, find_transcriber, read_chunks
from pipecat_personaplex.words import Word
from tests.helpers.questions import QUESTION


def question() -> np.ndarray:
    """ "What is on the menu?" from 1 s on."""
    pcm = np.zeros(4 * SAMPLE_RATE, np.float32)
    spoken = read_audio(QUESTION)
    pcm[SAMPLE_RATE : SAMPLE_RATE + len(spoken)] = spoken
    return pcm


def check(words: list[Word]) -> None:
    assert "menu" in " ".join(word.word.lower() for word in words)
    assert 0.4 < words[0].start < 1.4  # Whisper's first word may start early
    assert all(word.start <= word.end for word in words)
    assert all(a.start <= b.start for a, b in itertools.pairwise(words))


def test_whisper(whisper_model: str) -> None:
    transcribe = find_transcriber(f"whisper:{whisper_model}")
    check(transcribe(question(), SAMPLE_RATE))
    assert transcribe(np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE) == []
    assert transcribe(np.zeros(0, np.float32), SAMPLE_RATE) == []


def test_pocketsphinx() -> None:
    pytest.importorskip("pocketsphinx")
    transcribe = find_transcriber("pocketsphinx")
    words = transcribe(question(), SAMPLE_RATE)
    assert len(words) >= 3 and 0.6 < words[0].start < 1.5
    assert not any("<" in word.word or "(" in word.word for word in words)
    assert transcribe(np.zeros(0, np.float32), SAMPLE_RATE) == []


@dataclass
class TimestampedResult:
    """As in onnx-asr 0.12."""

    text: str
    timestamps: list[float] | None = None
    tokens: list[str] | None = None


def test_onnx_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of tokens and their times, with a stand-in for the 2.4 GB of Parakeet."""
    loaded: list[str] = []

    class Model:
        def with_timestamps(self) -> Model:
            return self

        def recognize(self, waveform: Any, *, sample_rate: int) -> TimestampedResult:
            assert waveform.dtype == np.float32 and sample_rate == 16_000
            if not waveform.any():
                return TimestampedResult("")
            tokens = [" Hel", "lo", " you", "."]
            return TimestampedResult("Hello you.", [0.4, 0.56, 2.0, 2.2], tokens)

    module = ModuleType("onnx_asr")
    module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("onnx_asr", None)
    module.load_model = lambda name: loaded.append(name) or Model()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnx_asr", module)
    transcribe = find_transcriber("onnx")
    assert transcribe(question(), SAMPLE_RATE) == [
        Word("Hello", 0.4, 1.06),  # a token lasts half a second at most
        Word("you.", 2.0, pytest.approx(2.28)),
    ]
    assert transcribe(np.zeros(2400, np.float32), SAMPLE_RATE) == []
    find_transcriber("onnx:parakeet-tdt-0.6b-v3")
    assert loaded == ["nemo-parakeet-tdt-0.6b-v2", "nemo-parakeet-tdt-0.6b-v3"]


@pytest.mark.parametrize(
    ("name", "package"),
    [("whisper:x", "faster_whisper"), ("pocketsphinx", "pocketsphinx"), ("onnx", "onnx_asr")],
)
def test_missing_packages_are_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"needs {package}, which is not installed: pip install"):
        find_transcriber(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("siri", "'siri' is unknown; it must be one of whisper, pocketsphinx, onnx"),
        ("whisper", "needs a model"),
        ("whisper:/nowhere/at/all", "cannot be loaded"),
        ("pocketsphinx:en", "takes no argument"),
    ],
)
def test_wrong_transcribers(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=message):
        find_transcriber(name)


def test_plugins_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of an installed distribution."""
    (tmp_path / "my_plugins.py").write_text(
        "class Fixed:\n"
        "    def __init__(self, argument):\n"
        "        self.name = 'fixed ' + argument\n"
        "    def __call__(self, *question):\n"
        "        return 'Rating: 3' if len(question) == 1 else []\n"
    )
    info = tmp_path / "my_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[personaplex.transcribers]\nfixed = my_plugins:Fixed\n"
        "[personaplex.judges]\nfixed = my_plugins:Fixed\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_transcriber("fixed")(question(), SAMPLE_RATE) == []
    judge = find_judge("fixed:x", {})
    assert judge is not None and judge.name == "fixed x"
    assert StoredJudge(judge, tmp_path / "judge").rate(Answer("", "", "a")) == (3, 1)


def test_transcript_files_round_trip() -> None:
    words = [Word("hello", 0.1, 0.5), Word("you", 0.6, 0.9)]
    assert read_chunks(json.loads(json.dumps(chunks_of(words)))) == words


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Fine.\nRating: 4", 4),
        ("Fine.\n\n rating : 0 \n", 0),
        ("Rating: 2\nor rather\nRating: 3.", 3),
        ("**Rating:** 5", 5),
        ("**Rating: 4/5**", 4),
        ("Rating: *3* / 5", 3),
        ("Rating: 9", None),
        ("Rating: 45", None),
        ("Rating: 4.5", None),
        ("Rating: 4/10", None),
        ("Rating: -1", None),
        ("Rating (0-5): 4", None),
        ("Rating: 0 to 5? I say 2", None),
        ("Rating: 4\nThough one may say less.", None),
        ("Rating: 4, no rating: 3", None),
        ("rating = 0", None),
        ("I rate it well", None),
        ("", None),
    ],
)
def test_ratings(reply: str, rating: int | None) -> None:
    assert parse_rating(reply) == rating


def test_a_rating_that_an_earlier_version_read_wrongly_is_asked_again(tmp_path: Path) -> None:
    replies = iter(["Rating (0-5): 4", "It helps.\nRating: 4"])

    class Judge:
        name = "slow"

        def __call__(self, answer: Answer) -> str:
            return next(replies)

    stored, answer = StoredJudge(Judge(), tmp_path), Answer("", "", "a")
    assert stored.rate(answer) == (4, 2)
    [path] = tmp_path.iterdir()
    assert json.loads(path.read_text())["replies"] == ["Rating (0-5): 4", "It helps.\nRating: 4"]
    assert stored.rate(answer) == (4, 2)
    wrong = {"replies": ["Rating (0-5): 4"], "rating": 0, "attempts": 1}
    path.write_text(json.dumps(wrong))
    replies = iter(["Rating: 3"])
    assert stored.rate(answer) == (3, 1)
    assert json.loads(path.read_text())["rating"] == 3


def test_rules() -> None:
    judge = RuleJudge()
    wanted = ("nine dollars", "9.50")
    assert judge(Answer("", "", "It is nine dollars, sir.", wanted)) == "Rating: 5"
    assert judge(Answer("", "", "It is $9.50.", wanted)) == "Rating: 5"
    assert judge(Answer("", "", "Goodbye.", wanted)) == "Rating: 0"
    assert judge(Answer("", "", "Goodbye.")) == ""
    for words, answer, rating in (
        ("ten", "We are often closed.", 0),
        ("no", "I don't know.", 0),
        ("Paris", "It is Paris.", 5),
        ("$9.50", "It is $9.50.", 5),
        ("ice-cream", "We have ice-cream.", 5),
        ("apolog", "I apologize.", 5),
        ("?", "It is Paris.", 0),
    ):
        assert judge(Answer("", "", answer, (words,))) == f"Rating: {rating}"


class Chat(BaseHTTPRequestHandler):
    """An OpenAI-compatible server."""

    requests: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[list[str | None]] = []
    status, body = 200, ""

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.requests.append(json.loads(self.rfile.read(length)))
        self.keys.append(self.headers["Authorization"])
        assert self.path == "/v1/chat/completions"
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body.encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Chat.requests, Chat.keys, Chat.status = [], [], 200
    Chat.body = json.dumps({"choices": [{"message": {"content": "Good.\nRating: 4"}}]})
    with HTTPServer(("127.0.0.1", 0), Chat) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()
        thread.join()


def test_a_server_is_asked_once_for_the_same_answer(server: str, tmp_path: Path) -> None:
    judge = find_judge(f"{server}#qwen", {"server": "secret"})
    assert judge is not None and judge.name == f"{urlsplit(server).netloc}/v1/qwen"
    answer = Answer("You sell bread.", "What is bread?", "It is bread.")
    for _ in range(2):
        assert StoredJudge(judge, tmp_path).rate(answer) == (4, 1)
    [request] = Chat.requests
    assert request["model"] == "qwen" and request["temperature"] == 0 and request["seed"] == 0
    assert "You sell bread." in request["messages"][1]["content"]
    assert Chat.keys == ["Bearer secret"]
    StoredJudge(judge, tmp_path).rate(Answer("You sell bread.", "What is bread?", "No."))
    assert len(Chat.requests) == 2
    assert "secret" not in "".join(file.read_text() for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, "no key", "answers 401: no key"),
        (200, "{}", "does not answer as OpenAI's API does"),
        (200, "<html>", "cannot be reached"),
    ],
)
def test_a_server_that_refuses(server: str, status: int, body: str, message: str) -> None:
    Chat.status, Chat.body = status, body
    with pytest.raises(UserError, match=message):
        ChatJudge(server, "m")(Answer("", "", ""))


def test_judges_of_two_servers_have_two_names() -> None:
    names = [
        ChatJudge(url, "m").name for url in ("http://a:1/v1", "http://a:2/v1", "http://a:2/v2/")
    ]
    assert names == ["a:1/v1/m", "a:2/v1/m", "a:2/v2/m"]


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(UserError, match="cannot be reached"):
        ChatJudge("http://127.0.0.1:9/v1", "m", timeout=2)(Answer("", "", ""))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oracle", "'oracle' is unknown; it must be one of rules, openai"),
        ("openai", "needs a model"),
        ("openai:gpt-4o", "needs an API key in OPENAI_API_KEY"),
        ("rules:x", "takes no argument"),
        ("http://", "give an address"),
        ("http://[::1", "give an address"),
        ("http://localhost:99999/v1", "give an address"),
        ("http://localhost:0/v1", "give an address"),
    ],
)
def test_wrong_judges(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_judge(name, {})
    assert find_judge("none", {}) is None


@pytest.mark.parametrize(
    "url", ["http://me:secret@h:1/v1", "http://me:sec/ret@h/v1", "http://m@[x"]
)
def test_a_password_in_the_address_of_a_judge_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="PERSONAPLEX_JUDGE_KEY") as caught:
        find_judge(f"{url}#model", {})
    assert url not in str(caught.value) and "me:" not in str(caught.value)
