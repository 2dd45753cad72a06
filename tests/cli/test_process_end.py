"""The end of the process: at once when torch is loaded, with everything written."""

from __future__ import annotations

import subprocess
import sys
from typing import NoReturn

import pytest

from specgen.cli import app


class Ended(BaseException):
    """Stands in for the end of the process."""


@pytest.fixture
def codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []

    def leave(code: int) -> NoReturn:
        found.append(code)
        raise Ended

    monkeypatch.setattr("os._exit", leave)
    return found


def exit_with(monkeypatch: pytest.MonkeyPatch, code: int | str) -> None:
    monkeypatch.setattr(app, "main", lambda: sys.exit(code))


@pytest.mark.parametrize("code", [0, 3, 130])
def test_with_torch_the_process_ends_at_once(monkeypatch: pytest.MonkeyPatch, codes: list[int], code: int) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    exit_with(monkeypatch, code)

    with pytest.raises(Ended):
        app.start()

    assert codes == [code]


def test_without_torch_the_interpreter_ends_as_usual(monkeypatch: pytest.MonkeyPatch, codes: list[int]) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    exit_with(monkeypatch, 2)

    with pytest.raises(SystemExit) as end:
        app.start()

    assert (end.value.code, codes) == (2, [])


@pytest.mark.process
def test_what_is_in_the_buffers_is_written_before_the_end() -> None:
    script = (
        "import sys; sys.modules['torch'] = sys; from specgen.cli import app\n"
        "app.main = lambda: (sys.stdout.write('out'), sys.stderr.write('err'), sys.exit(7))\n"
        "app.start()"
    )

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "out", "err")
