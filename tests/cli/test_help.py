"""Tests the text of `--help` against snapshots (`tests.snapshots`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.cli.program import program
from tests.cli.conftest import Cli
from tests.snapshots import check_snapshot

SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")


@pytest.mark.parametrize("name", ["", *(command.name for command in program().commands)])
def test_help_is_that_of_the_snapshot(cli: Cli, name: str) -> None:
    ended = cli(*([name] if name else []), "--help")

    assert (ended.code, ended.err) == (0, "")
    check_snapshot(SNAPSHOTS / f"help{name and '-'}{name}.txt", ended.out.decode())


@pytest.mark.parametrize("name", [command.name for command in program().commands])
def test_the_short_option_shows_the_same_help(cli: Cli, name: str) -> None:
    assert cli(name, "-h").out == cli(name, "--help").out


def test_an_option_of_the_program_wins_over_the_command_after_it(cli: Cli) -> None:
    ended = cli("--version", "generate", "hello")

    assert ended.code == 0
    assert len(ended.out.splitlines()) == 1


def test_without_a_command_nothing_is_run(cli: Cli) -> None:
    ended = cli("--")

    assert (ended.code, ended.out) == (2, b"")
    assert "specgen --help" in ended.err


def test_on_windows_the_program_ends_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from specgen.cli import app

    monkeypatch.setattr("sys.platform", "win32")

    with pytest.raises(SystemExit) as ended:
        app.main()

    assert "WSL" in str(ended.value)
