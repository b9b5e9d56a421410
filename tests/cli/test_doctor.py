"""``personaplex doctor``: what it finds here, and what it says where something is wrong."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipecat_personaplex.cli import doctor_checks, main
from pipecat_personaplex.cli.finding import Finding


def finding(subject: str) -> Finding:
    [check] = [check for name, check in doctor_checks._CHECKS if name == subject]
    return check()


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the checks by given ones."""

    def choose(**checks: Callable[[], Finding]) -> None:
        monkeypatch.setattr(doctor_checks, "_CHECKS", tuple(checks.items()))

    return choose


def test_this_machine_has_no_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["doctor", "--json"]) == 0
    found = {item["subject"]: item for item in json.loads(capsys.readouterr().out)}
    assert set(found) == {name for name, _ in doctor_checks._CHECKS}
    assert all(set(item) == {"subject", "status", "detail", "cure"} for item in found.values())
    assert all(item["cure"] for item in found.values() if item["status"] == "problem")
    assert found["nano"]["detail"].startswith("2 s of a call computed in")
    assert found["torch"]["status"] == "ok"


def test_a_problem_has_a_cure_and_an_exit_code(
    only: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def raises() -> Finding:
        raise OSError("libsomething.so: cannot open\nshared object file")

    only(
        good=lambda: Finding("good", "ok", "all [is] well"),
        bad=raises,
    )
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["ok", "good", "all", "[is]", "well"]
    assert lines[1].startswith("problem bad") and "cannot open shared object file" in lines[1]
    assert lines[2].strip().startswith("-> ")
    assert err == "error: this needs a cure: bad\n"


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(doctor_checks, "PAGE_PORT", port)
            found = finding("ports")
    assert found.status == "note" and str(port) in found.detail and "--port" in found.cure


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*missing: str) -> Finding:
        monkeypatch.setattr(
            doctor_checks, "find_spec", lambda name: None if name in missing else object()
        )
        return finding("packages")

    assert without().detail.endswith("extras talk, bots, server, bench")
    for missing, extras in (
        (("daily",), "bots"),  # after make bot, which installs talk
        (("aiortc",), "talk,bots"),
        (("sphn", "matplotlib"), "bots,server,bench"),
    ):
        packages = without(*missing)
        assert packages.status == "note" and f"[{extras}]'" in packages.cure
        assert packages.detail.endswith(f"the extras {extras.replace(',', ', ')}")
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert without("daily").status == "ok"
    without("opuslib_next")
    opus = finding("opus")
    assert opus.status == "note" and "[server]" in opus.cure


def test_an_unwritable_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    # Root may write everywhere, so the answer of the system is replaced.
    monkeypatch.setattr(doctor_checks.os, "access", lambda path, mode: False)
    found = finding("hub cache")
    assert found.status == "note" and "HF_HOME" in found.cure


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        doctor_checks.shutil,
        "disk_usage",
        lambda path: type("Usage", (), {"free": 3 << 30}),
    )
    found = finding("hub cache")
    assert found.status == "note" and "3 GiB free" in found.detail and "17 GB" in found.cure


def test_over_ssh_the_microphone_needs_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 5 192.0.2.2 22")
    found = finding("microphone")
    assert found.status == "note" and "ssh -L 7860:localhost:7860" in found.cure


def test_the_shell_completes_commands() -> None:
    completed = subprocess.run(
        [sys.executable, "-c", "from pipecat_personaplex.cli import main; main()"],
        env={
            "_PERSONAPLEX_COMPLETE": "complete_bash",
            "COMP_WORDS": "personaplex of",
            "COMP_CWORD": "1",
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
    )
    assert completed.stdout.split() == ["offline"], completed.stderr


def test_kernels_of_a_card_need_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton finds none, as in an image without gcc."""
    from pipecat_personaplex.kernels import availability

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for check in ("ring_attention_works", "depth_attention_works", "gemm_works"):
        monkeypatch.setattr(availability, check, lambda *_: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert finding("kernels").cure == "apt install gcc libc6-dev python3-dev"
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert finding("kernels").cure == "see the warnings above"


def test_kernels_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipecat_personaplex.kernels import availability, cpu_library

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = finding("kernels")
    if availability.cpu_gemm_works("int8"):
        assert found.status == "ok" and "int4 products" in found.detail
        monkeypatch.setattr(availability, "cpu_gemm_works", lambda format: format == "int8")
        assert "not available on this CPU: int4 products" in finding("kernels").detail
    cpu_library._find_library.cache_clear()
    monkeypatch.setattr(cpu_library, "_processor", lambda: "flags: sse2")
    missing = finding("kernels")
    cpu_library._find_library.cache_clear()
    assert missing.status == "note"
    assert "none for this CPU" in missing.detail
