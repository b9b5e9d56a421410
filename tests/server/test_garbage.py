"""A server does not scan its model and its modules for garbage while it serves."""

from __future__ import annotations

import gc

from tests.helpers.servers import RunningServer, ServedFakeEngine, eventually


def test_loaded_objects_are_frozen_while_a_server_runs() -> None:
    assert gc.get_freeze_count() == 0
    with RunningServer(ServedFakeEngine()) as running:
        eventually(lambda: gc.get_freeze_count() > 10_000)
        running.stop()
        assert running.wait_stopped()
    assert gc.get_freeze_count() == 0


def test_they_are_collected_again_if_a_server_fails() -> None:
    engine = ServedFakeEngine()
    with RunningServer(engine) as running:
        eventually(lambda: gc.get_freeze_count() > 0)
        engine.break_down()
        running.stop()
        assert running.wait_stopped()
    assert gc.get_freeze_count() == 0
