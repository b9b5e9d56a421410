"""The log output of commands: level, session id, JSON, and the standard library's records."""

from __future__ import annotations

import json
import logging

import pytest
from loguru import logger

from pipecat_personaplex.cli import main
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.logs import configure_logging


def test_lines_carry_the_session_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logger.bind(session="1a2b3c4d").info("the session is open")
    logger.debug("not written at this level")
    logger.warning("the engine is full")
    first, second = capsys.readouterr().err.splitlines()
    assert "1a2b3c4d" in first and first.endswith("the session is open")
    assert "1a2b3c4d" not in second and second.endswith("the engine is full")


def test_json_has_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", as_json=True)
    logger.bind(session="1a2b3c4d", client="bot").info("a {} with braces", "{prompt}")
    try:
        raise ValueError("broken")
    except ValueError as error:
        logger.opt(exception=error).error("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time")
    assert first == {
        "level": "INFO",
        "message": "a {prompt} with braces",
        "module": __name__,
        "session": "1a2b3c4d",
        "client": "bot",
    }
    assert second["message"] == "failed" and "session" not in second
    assert "ValueError: broken" in second["exception"]


def test_records_of_the_standard_library_are_written_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("INFO")
    logging.getLogger("library").info("not written")
    logging.getLogger("library").warning("a request of %d bytes {}", 7)
    [line] = capsys.readouterr().err.splitlines()
    assert "WARNING" in line and line.endswith("a request of 7 bytes {}")


def test_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="DEBUG, INFO, WARNING, ERROR, not 'LOUD'"):
        configure_logging("loud")


@pytest.mark.parametrize(("options", "shown"), [([], False), (["--debug"], True)])
def test_debug_shows_every_level(
    capsys: pytest.CaptureFixture[str], options: list[str], shown: bool
) -> None:
    assert main([*options, "keys", "new", "bot"]) == 0
    logger.debug("a detail")
    logger.warning("a warning")
    error = capsys.readouterr().err
    assert ("a detail" in error) == shown and "a warning" in error


def test_a_library_may_have_levels_of_its_own_and_wrong_arguments(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging()
    library = logging.getLogger("a.library")
    library.log(35, "a notice")
    library.warning("%d files", "x")
    library.warning("it goes on")
    errors = capsys.readouterr().err
    assert "a notice" in errors and "it goes on" in errors
    assert "%d files" in errors, "the standard library reports the faulty line"
