"""The line editor with keys from a pipe instead of a terminal."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.application.run_in_terminal import in_terminal as as_in_terminal
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from specgen.cli.chat.file_commands import edit_text
from specgen.cli.chat.line_editor import (
    CONTINUATION,
    MAX_HISTORY_ENTRIES,
    CommandCompleter,
    LineEditor,
    PrivateHistory,
    _continuation,
)
from specgen.core.errors import SettingsError
from tests.profiles import by_profile

UP = "\x1b[A"
MANY_LINES = [f"line {number}" for number in range(by_profile(300, 900))]
"""More than are read at once, 1024 bytes."""


def typed(keys: str, *later: str, history: Path | None = None) -> list[str]:
    """Returns the entries that keys make; `later` are keys that follow each entry, one string for one entry."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        editor = LineEditor(history, {}, DummyOutput())
        entries = []
        for line in (keys, *later):
            pipe.send_text(line)
            entries.append(editor.read())
        return entries


@pytest.mark.parametrize(
    ("keys", "entry"),
    [
        ("hello\r", "hello"),
        ("a\nb\r", "a\nb"),
        ("a\x1b\rb\r", "a\nb"),
        ("\x1b[200~a\r\nb\nc\x1b[201~\r", "a\nb\nc"),
        ('"""\ra\r/b\r"""\r', '"""\na\n/b\n"""'),
        ("wrong\x03right\r", "right"),
        ("né 日本 🙂\r", "né 日本 🙂"),
        ("/he\t\r", "/help"),
    ],
)
def test_keys_make_an_entry(keys: str, entry: str) -> None:
    assert typed(keys) == [entry]


@pytest.mark.fault("F137")
@pytest.mark.parametrize(
    ("keys", "entry"),
    [
        ("one\rtwo\rthree\r", "one\ntwo\nthree"),
        ("\rone\r\rtwo\r", "\none\n\ntwo"),
        ("//x\rtwo\r", "//x\ntwo"),
        pytest.param("".join(f"{line}\r" for line in MANY_LINES), "\n".join(MANY_LINES), id="many-lines"),
    ],
)
@pytest.mark.fast(without=("many-lines",))
def test_a_paste_without_marks_is_one_entry(keys: str, entry: str) -> None:
    assert typed(keys) == [entry]


def test_a_control_key_after_a_line_is_no_paste() -> None:
    assert typed("two\r\x04") == ["two"]


@pytest.mark.fault("F137")
def test_commands_that_arrive_together_stay_apart() -> None:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("/stats off\r/exit\r")
        editor = LineEditor(None, {}, DummyOutput())

        assert [editor.read(), editor.read()] == ["/stats off", "/exit"]


@pytest.mark.fault("F138")
def test_a_wrapped_row_differs_from_a_new_line() -> None:
    assert _continuation(2, 1, 0) == CONTINUATION
    assert _continuation(2, 0, 1).isspace()
    assert len(_continuation(2, 0, 1)) == len(CONTINUATION)


def test_bytes_that_are_not_utf8_become_question_marks() -> None:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_bytes(b"a\xff\r")
        assert LineEditor(None, {}, DummyOutput()).read() == "a?"


def test_an_interrupt_ends_the_prompt_and_a_question_within_it() -> None:
    """Such as the question of readline-like completion if there is more than one screen to show."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        editor = LineEditor(None, {}, DummyOutput())
        seen: list[bool] = []

        async def ask() -> None:
            question: PromptSession[str] = PromptSession("display all? ")
            asyncio.get_running_loop().call_later(0.05, lambda: seen.append(editor.interrupt()))
            await question.prompt_async()

        def at_start() -> None:
            editor._session.app.create_background_task(in_terminal(ask))

        editor._session.app.pre_run_callables.append(at_start)

        assert editor.read() == ""
        assert seen == [True]
        assert not editor.interrupt(), "outside of the event loop"


async def in_terminal(ask: Callable[[], Awaitable[None]]) -> None:
    async with as_in_terminal():
        await ask()


def test_ctrl_c_and_ctrl_d_on_an_empty_line_raise_different_exceptions() -> None:
    with pytest.raises(KeyboardInterrupt):
        typed("\x03")
    with pytest.raises(EOFError):
        typed("\x04")


def test_the_up_key_recalls_entries_of_an_earlier_chat(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    typed("first\r", "second\nline\r", history=path)

    assert typed(f"{UP}{UP}{UP}\r", history=path) == ["first"]
    assert typed(f"{UP}\r", history=path) == ["first"]


def test_the_history_is_private_and_omits_lines_that_start_with_a_space(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    previous = os.umask(0)
    try:
        typed("shown\r", " hidden\r", history=path)
    finally:
        os.umask(previous)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "shown" in path.read_text()
    assert "hidden" not in path.read_text()


def test_the_history_keeps_the_newest_entries(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = PrivateHistory(path)
    for number in range(2 * MAX_HISTORY_ENTRIES):
        history.store_string(f"entry {number}")

    entries = list(PrivateHistory(path).load_history_strings())

    assert entries[0] == f"entry {2 * MAX_HISTORY_ENTRIES - 1}"
    assert len(entries) == MAX_HISTORY_ENTRIES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("path", ["/proc/nowhere/history", "/dev/null/history"])
def test_a_history_that_can_t_be_written_is_ignored(path: str) -> None:
    assert typed("hello\r", history=Path(path)) == ["hello"]


def test_the_history_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "history").symlink_to(tmp_path / "victim")

    typed("hello\r", history=tmp_path / "history")

    assert (tmp_path / "victim").read_text() == "mine"


def completions(text: str) -> list[str]:
    completer = CommandCompleter({"/view": lambda: ("inline", "live"), "/load": lambda: ["holiday"]})
    return [item.text for item in completer.get_completions(Document(text), CompleteEvent())]


def test_commands_and_their_arguments_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)

    assert completions("/re") == ["/retry", "/read"]
    assert completions("/view ") == ["inline", "live"]
    assert completions("/view li") == ["live"]
    assert completions("/load ho") == ["holiday"]
    assert completions("/read no") == ["tes.txt"]
    assert completions("hello /re") == []
    assert completions("a\n/re") == []


def editor_script(tmp_path: Path, body: str) -> str:
    script = tmp_path / "editor.sh"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o700)
    return str(script)


def test_the_external_editor_gets_the_text_and_returns_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    script = editor_script(tmp_path, f'stat -c %a "$1" > {seen}.mode; cp "$1" {seen}; echo new > "$1"')
    monkeypatch.setenv("VISUAL", script)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115

    assert edit_text("old\n日") == "new\n"
    assert seen.read_text() == "old\n日"


@pytest.mark.parametrize("command", ["/nowhere/editor", "false", '"'])
def test_an_external_editor_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", command)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115

    with pytest.raises(SettingsError, match=re.escape(command)):
        edit_text("old")
