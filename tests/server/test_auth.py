from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from loguru import logger

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.server.auth import ApiClient, ApiKeys, new_key

DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def key_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "keys.txt"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


def test_a_key_identifies_its_client(key_file: Callable[[str], Path]) -> None:
    bot, bot_line = new_key("my-bot")
    trial, trial_line = new_key("trial_2.x", 3)
    keys = ApiKeys.read(key_file(f"# ours\n\n{bot_line}\n  {trial_line}  # until May\n"))
    assert len(keys) == 2
    assert keys.client_of(bot) == ApiClient("my-bot", None)
    assert keys.client_of(trial) == ApiClient("trial_2.x", 3)
    for wrong in ("", "x", bot[:-1], bot + "x", bot.upper(), bot_line.digest, "\udc80ü\x00"):
        assert keys.client_of(wrong) is None


def test_keys_are_long_and_stored_only_as_hashes() -> None:
    keys = {new_key("a")[0] for _ in range(100)}
    assert len(keys) == 100 and all(len(key) == 43 for key in keys)
    key, line = new_key("a", 2)
    assert key not in str(line)
    assert str(line) == f"a {line.digest} max_sessions=2"


def test_every_line_is_compared(
    key_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipecat_personaplex.server import auth

    made = [new_key(name) for name in ("a", "b", "c")]
    keys = ApiKeys.read(key_file("\n".join(str(line) for _, line in made)))
    compared: list[str] = []
    real = auth.hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append(one)
        return real(one, other)

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    for key, _ in made:
        compared.clear()
        assert keys.client_of(key) is not None
        assert compared == [line.digest for _, line in made]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no key"),
        ("# nothing\n", "has no key"),
        ("bot\n", "line 1: after the name"),
        (f"\nbot {DIGEST}\n{DIGEST}\n", "line 3: after the name"),
        (f"bot {DIGEST.upper()}", "line 1: after the name"),
        (f"bot {DIGEST}0", "line 1: after the name"),
        (f"b/t {DIGEST}", "line 1: the line must begin with a name"),
        (f"-bot {DIGEST}", "line 1: the line must begin with a name"),
        (f"bot {DIGEST} max_sessions=0", "line 1: after the hash"),
        (f"bot {DIGEST} max_sessions=", "line 1: after the hash"),
        (f"bot {DIGEST} sessions=1", "line 1: after the hash"),
        (f"bot {DIGEST} max_sessions=1 max_sessions=2", "line 1: after the hash"),
        (f"bot {DIGEST}\nbot {DIGEST}", "line 2: there is another key with the name bot"),
    ],
)
def test_a_bad_file_is_refused(key_file: Callable[[str], Path], text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as raised:
        ApiKeys.read(key_file(text))
    assert "keys.txt" in str(raised.value)
    assert DIGEST not in str(raised.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt cannot be read: No such file"):
        ApiKeys.read(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        ApiKeys.read(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\x01")
    with pytest.raises(ConfigError, match="is not text"):
        ApiKeys.read(tmp_path / "binary")


def test_a_readable_key_file_is_no_reason_to_warn(key_file: Callable[[str], Path]) -> None:
    """``>> keys.txt`` creates a file that everyone can read; it contains only hashes."""
    messages: list[str] = []
    sink = logger.add(messages.append, format="{message}")
    try:
        path = key_file(f"bot {DIGEST}")
        os.chmod(path, 0o644)
        ApiKeys.read(path)
    finally:
        logger.remove(sink)
    assert messages == []


def test_encodings_of_windows_editors_and_shells(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    line = f"bot {DIGEST}\r\n"
    path.write_bytes(line.encode("utf-8-sig"))
    assert len(ApiKeys.read(path)) == 1
    for data in (line.encode("utf-16"), line.encode() + line.encode("utf-16-le")):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="PowerShell's >> writes UTF-16"):
            ApiKeys.read(path)


@pytest.mark.parametrize(
    ("name", "limit"), [("", None), ("a b", None), ("../a", None), ("a" * 65, None), ("a", 0)]
)
def test_an_invalid_name_or_limit_is_refused(name: str, limit: int | None) -> None:
    with pytest.raises(ConfigError):
        new_key(name, limit)


def test_a_key_can_be_made_without_the_packages_of_a_server() -> None:
    program = (
        "import sys; sys.modules['starlette'] = sys.modules['starlette.requests'] = None\n"
        "from pipecat_personaplex.server.auth import new_key; print(new_key('bot')[1])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("bot ") and not done.stderr
