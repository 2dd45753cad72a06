"""`specgen chat` on a terminal, with keys and signals, from the first prompt to the exit code."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from specgen.storage import saved_chats
from specgen.storage.transcript import to_json
from tests.cli.chat.scenes import open_toy, saved
from tests.cli.chat.terminals import Barrier, Shell, Terminal, logged
from tests.storage.test_saved_chats import NEW
from tests.toys import ANSWER

SHORT = ("-n", "12", "-k", "3", "--temperature", "0", "--device", "cpu", "--dtype", "float32", "--quant", "none")
Opener = Callable[..., Terminal]


@pytest.fixture
def open_terminal(state: Path) -> Iterator[Opener]:
    opened: list[Terminal] = []

    def make(*arguments: str, **options: object) -> Terminal:
        # The children are forked from a process that may have run torch: bfloat16 kernels may fail after a fork.
        if "--dtype" not in arguments:
            arguments = (*arguments, "--dtype", "float32")
        terminal = Terminal(*arguments, state=state, **options)  # type: ignore[arg-type]
        opened.append(terminal)
        return terminal

    yield make
    for terminal in opened:
        terminal.close()


@functools.cache
def transformers_model(folder: Path) -> Any:
    """Returns a folder's model of transformers, loaded once."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def transformers_reply(folder: Path, prompt_ids: list[int], count: int) -> list[int]:
    """Returns what the greedy `generate` of transformers writes after a prompt."""
    models = open_toy(folder)
    ids = torch.tensor([prompt_ids])
    ends = list(models.pair.end_ids)
    whole = transformers_model(folder).generate(
        ids, do_sample=False, max_new_tokens=count, eos_token_id=ends, pad_token_id=0
    )
    return [int(token) for token in whole[0, len(prompt_ids) :]]


def assert_each_reply_is_a_fresh_one(folder: Path, log: Path, count: int) -> None:
    replies = logged(log)
    assert len(replies) == count
    for prompt, reply in replies:
        assert reply == transformers_reply(folder, prompt, len(reply))


def test_replies_of_a_scripted_session_are_fresh_ones_and_it_can_be_resumed(
    open_terminal: Opener, toy: Path, state: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    chat = open_terminal("-t", str(toy), *SHORT, log=log)
    banner = chat.prompt()
    chat.say("one")
    chat.say("two")
    undone = chat.say("/undo")
    chat.say("three")
    retried = chat.say("/retry max-new-tokens=5")
    system = chat.say("/system Be brief.")
    chat.say("four")
    chat.say("five")
    as_trip = chat.say("/save trip")
    chat.type("/exit\r")

    assert chat.ended() == 0
    assert "/help" in banner
    assert "two" in undone
    assert "tok/s" in retried
    assert "Be brief." in system
    assert "trip.json" in re.sub(r"\s", "", as_trip)
    assert_each_reply_is_a_fresh_one(toy, log, 6)
    transcript = saved(state / "sessions" / "trip.json")
    assert [m.content for m in transcript.messages if m.role == "user"] == ["one", "three", "four", "five"]

    again = open_terminal("--resume", "last", "--temperature", "0", "--dtype", "float32", log=tmp_path / "again")
    resumed = again.prompt()
    again.say("six")
    again.type("\x04")

    assert again.ended() == 0
    assert "8 messages" in resumed
    assert "toy none" in resumed
    assert_each_reply_is_a_fresh_one(toy, tmp_path / "again", 1)
    after = saved(state / "sessions" / "trip.json")
    assert after.messages[:8] == transcript.messages
    assert after.system == "Be brief."
    assert after.created == transcript.created


@pytest.mark.fault("F52")
def test_ctrl_c_at_an_exact_round_keeps_the_text_and_the_next_reply_is_correct(
    open_terminal: Opener, toy: Path, state: Path, tmp_path: Path
) -> None:
    barrier, log = Barrier(), tmp_path / "log"
    chat = open_terminal("-t", str(toy), "-n", "40", *SHORT[2:], "--no-calibrate", prepare=barrier.arm, log=log)
    chat.prompt()
    chat.type("one\r")
    barrier.await_rounds(3)
    chat.type("\x03")
    barrier.await_signal()
    barrier.open()
    shown = chat.prompt()
    following = chat.say("two")
    chat.type("\x04")

    assert chat.ended() == 0
    assert "interrupted" in shown.splitlines()[-3] + shown.splitlines()[-2]
    assert "interrupted" not in following
    assert termios.tcgetattr(chat.fd)[:4] == chat.before[:4]
    assert_each_reply_is_a_fresh_one(toy, log, 2)
    (path,) = (state / "sessions").glob("*.json")
    first = saved(path).messages[1]
    assert first.interrupted
    assert first.stats["num_rounds"] == 3
    assert first.content


def test_a_second_ctrl_c_exits_with_130_saves_the_text_and_restores_the_terminal(
    open_terminal: Opener, toy: Path, state: Path
) -> None:
    barrier = Barrier()
    chat = open_terminal("-t", str(toy), "-n", "40", *SHORT[2:], prepare=barrier.arm)
    chat.prompt()
    chat.type("one\r")
    barrier.await_rounds(3)
    for _ in range(2):
        chat.type("\x03")
        barrier.await_signal()

    assert chat.ended() == 130
    assert termios.tcgetattr(chat.fd)[:4] == chat.before[:4]
    (path,) = (state / "sessions").glob("*.json")
    messages = saved(path).messages
    assert messages[1].interrupted
    assert messages[1].stats["num_rounds"] == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.fault("F53")
def test_a_signal_in_the_middle_of_a_reply_saves_the_partial_reply(
    open_terminal: Opener, toy: Path, state: Path, number: int, code: int
) -> None:
    barrier = Barrier()
    chat = open_terminal("-t", str(toy), "-n", "40", *SHORT[2:], prepare=barrier.arm)
    chat.prompt()
    chat.type("one\r")
    barrier.await_rounds(2)
    os.kill(chat.pid, number)
    barrier.await_signal()
    barrier.open()

    assert chat.ended() == code
    assert termios.tcgetattr(chat.fd)[:4] == chat.before[:4]
    (path,) = (state / "sessions").glob("*.json")
    assert saved(path).messages[1].interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_at_the_prompt_saves_the_session_and_restores_the_terminal(
    open_terminal: Opener, talker: Path, state: Path, number: int, code: int
) -> None:
    chat = open_terminal("-t", str(talker), "--temperature", "0", "--device", "cpu")
    chat.prompt()
    chat.say("one")
    os.kill(chat.pid, number)

    assert chat.ended() == code
    assert termios.tcgetattr(chat.fd)[:4] == chat.before[:4]
    (path,) = (state / "sessions").glob("*.json")
    assert saved(path).messages[1].content == ANSWER


def in_a_callback_of_the_loop(number: int) -> Callable[[], None]:
    """The signal arrives while the prompt's event loop runs a callback, at the second prompt."""

    def prepare() -> None:
        from prompt_toolkit import PromptSession

        real, lines = PromptSession.prompt, []

        def prompt(session: PromptSession[str], *arguments: Any, **options: Any) -> Any:
            lines.append(session)

            def at_start() -> None:
                asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)

            return real(session, *arguments, **options, pre_run=at_start if len(lines) == 2 else None)

        PromptSession.prompt = prompt  # type: ignore[method-assign]

    return prepare


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.fault("F53")
def test_a_signal_that_arrives_while_the_prompt_is_busy_is_not_lost(
    open_terminal: Opener, talker: Path, state: Path, number: int, code: int
) -> None:
    prepare = in_a_callback_of_the_loop(number)
    chat = open_terminal("-t", str(talker), "--temperature", "0", "--device", "cpu", prepare=prepare)
    chat.prompt()
    chat.type("one\r")

    assert chat.ended() == code
    assert termios.tcgetattr(chat.fd)[:4] == chat.before[:4]
    (path,) = (state / "sessions").glob("*.json")
    assert saved(path).messages[1].content == ANSWER


@pytest.mark.parametrize("in_reply", [False, True])
@pytest.mark.fault("F54")
def test_a_closed_terminal_window_saves_the_session_and_exits_with_129(
    open_terminal: Opener, toy: Path, state: Path, in_reply: bool
) -> None:
    barrier = Barrier()
    chat = open_terminal("-t", str(toy), *SHORT, prepare=barrier.arm if in_reply else None)
    chat.prompt()
    if in_reply:
        chat.type("one\r")
        barrier.await_rounds(2)
        os.close(chat.fd)
        barrier.await_signal()
        barrier.open()
    else:
        chat.say("one")
        os.close(chat.fd)
    _, status = os.waitpid(chat.pid, 0)
    chat.code = os.waitstatus_to_exitcode(status)

    assert chat.code == 129
    (path,) = (state / "sessions").glob("*.json")
    assert len(saved(path).messages) == 2


@pytest.mark.fault("F52")
def test_ctrl_c_at_the_prompt_clears_the_line_and_then_shows_how_to_leave(open_terminal: Opener, talker: Path) -> None:
    chat = open_terminal("-t", str(talker), "--temperature", "0", "--device", "cpu")
    chat.prompt()
    chat.type("wrong\x03")
    chat.type("\x03")
    chat.expect("/exit leaves")
    chat.prompt()
    chat.type("\x04")

    assert chat.ended() == 0


def test_keys_typed_during_a_reply_reach_the_next_prompt(open_terminal: Opener, talker: Path, state: Path) -> None:
    barrier = Barrier()
    chat = open_terminal("-t", str(talker), *SHORT, "--no-calibrate", prepare=barrier.arm)
    chat.prompt()
    chat.type("one\r")
    barrier.await_rounds(2)
    chat.type("two\r\x04")
    barrier.open()

    assert chat.ended() == 0
    (path,) = (state / "sessions").glob("*.json")
    assert [m.content for m in saved(path).messages if m.role == "user"] == ["one", "two"]


@pytest.mark.parametrize("view", ["live", "off"])
@pytest.mark.fault("F55")
def test_ctrl_z_suspends_and_the_reply_continues_in_the_foreground(
    open_terminal: Opener, toy: Path, tmp_path: Path, view: str
) -> None:
    barrier, shell, log = Barrier(), Shell(), tmp_path / "log"
    chat = open_terminal(
        *["-t", str(toy), *SHORT, "--no-calibrate", "--view", view], prepare=barrier.arm, shell=shell, log=log
    )
    chat.prompt()
    chat.type("one\r")
    barrier.await_rounds(2)
    chat.type("\x1a")
    shell.await_stop()
    assert termios.tcgetattr(chat.fd)[:4] == chat.before[:4]
    shell.resume()
    barrier.open()
    chat.prompt()
    chat.expect(">\b")
    chat.type("\x1a")
    shell.await_stop()
    shell.resume()
    chat.expect(">\b")  # the prompt is drawn again
    chat.say("two")
    chat.type("\x04")

    assert chat.ended() == 0
    assert_each_reply_is_a_fresh_one(toy, log, 2)


def test_a_pipe_on_stdin_is_a_usage_error_that_names_generate() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "specgen", "chat"], input=b"hello", capture_output=True, check=False
    )

    assert done.returncode == 2
    said = [line for line in done.stderr.decode().splitlines() if not line.startswith("import time")]
    assert len(said) == 2
    assert "stdin" in said[0]
    assert "specgen generate" in said[1]
    assert b" torch\n" not in done.stderr
    assert done.stdout == b""


@pytest.mark.fault("F66")
def test_a_session_in_use_exits_with_2_and_names_the_process(open_terminal: Opener, talker: Path, state: Path) -> None:
    first = open_terminal("-t", str(talker), "--temperature", "0", "--device", "cpu")
    first.prompt()
    first.say("one")
    second = open_terminal("--resume", "last")

    second.expect(str(first.pid))
    assert second.ended() == 2
    first.say("two")
    first.type("/exit\r")
    assert first.ended() == 0


@pytest.mark.fault("F64")
def test_a_damaged_session_is_set_aside_and_a_new_one_begins(open_terminal: Opener, talker: Path, state: Path) -> None:
    (state / "sessions").mkdir(parents=True)
    (state / "sessions" / "trip.json").write_text('{"schema_version": 9}')
    chat = open_terminal("-t", str(talker), "--resume", "trip", "--device", "cpu", "--temperature", "0")
    banner = re.sub(r"\s+", " ", chat.prompt())
    chat.say("one")
    chat.type("\x04")

    assert chat.ended() == 0
    assert "schema 9" in banner
    names = sorted(path.name for path in (state / "sessions").iterdir())
    assert len(names) == 2
    assert names[1].startswith("trip.json.corrupt-")
    assert (state / "sessions" / names[1]).read_text() == '{"schema_version": 9}'


@pytest.mark.fault("F65")
def test_an_explicit_session_that_can_t_be_written_exits_with_7(
    open_terminal: Opener, talker: Path, tmp_path: Path
) -> None:
    path = tmp_path / "trip.json"
    path.write_bytes(to_json(NEW))

    def refuse() -> None:
        def broken(*_: object) -> int:
            raise OSError(errno.EROFS, "Read-only file system")

        saved_chats.os.open = broken  # type: ignore[assignment]

    chat = open_terminal("-t", str(talker), "--resume", str(path), prepare=refuse)

    chat.expect("Read-only")
    assert chat.ended() == 7
    assert path.read_bytes() == to_json(NEW)


@pytest.mark.parametrize("options", [("--no-save",), ("--no-history",)])
def test_nothing_is_written_that_an_option_switches_off(
    open_terminal: Opener, talker: Path, state: Path, options: tuple[str, ...]
) -> None:
    chat = open_terminal("-t", str(talker), "--device", "cpu", *options)
    chat.prompt()
    chat.say("one")
    chat.type("\x04")

    assert chat.ended() == 0
    assert (state / "sessions").exists() == (options != ("--no-save",))
    assert (state / "history").exists() == (options != ("--no-history",))


def test_a_model_without_a_chat_template_is_reported_before_its_weights_are_read(
    open_terminal: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.toys import save_toy, toy_tokenizer

    folder = save_toy(tmp_path / "base", tokenizer=toy_tokenizer(template=None))
    chat = open_terminal("-t", str(folder))

    shown = chat.all_shown()
    assert chat.ended() == 2
    assert "base" in shown
    assert "template" in shown


@pytest.mark.fault("F74")
def test_a_dumb_terminal_gets_no_escape_sequences(open_terminal: Opener, talker: Path) -> None:
    def dumb() -> None:
        os.environ["TERM"] = "dumb"

    chat = open_terminal("-t", str(talker), "--device", "cpu", "--no-calibrate", prepare=dumb)
    chat.screen.expect_exact("> ")
    chat.type("one\r")
    chat.screen.expect_exact("tok/s")
    shown = str(chat.screen.before)
    chat.screen.expect_exact("> ")
    chat.type("\x04")

    assert chat.ended() == 0
    assert "\x1b" not in shown
    assert "quick" in shown
