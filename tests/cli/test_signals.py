"""Signals at an exact point of a run: in a pipe, with JSON, on a terminal."""

from __future__ import annotations

import json
import os
import random
import signal
import termios
from pathlib import Path
from typing import Any

import pyte
import pytest

from tests.cli.chat.terminals import Barrier, Shell, Terminal
from tests.cli.children import TOY, Child, Ended
from tests.cli.conftest import EXACT, Cli
from tests.cli.scripted_child import answer

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def stopped(*arguments: str, place: str, signum: signal.Signals = INT, **env: str) -> Ended:
    """Sends a signal to a run at a place, waits until it is handled, and lets the run continue."""
    with Child("generate", "hi", *arguments, place=place, **env) as child:
        child.wait_at_place()
        child.send(signum)
        child.go_on()
        return child.finish()


# F50, F53, F54


@pytest.mark.parametrize(("signum", "code"), [(INT, 130), (TERM, 143), (HUP, 129)])
@pytest.mark.fault("F50", "F53", "F80")
def test_a_signal_ends_the_answer_after_the_round_in_progress(signum: signal.Signals, code: int) -> None:
    ended = stopped(place="round 1", signum=signum)

    assert ended.code == code
    assert ended.out == answer(2).encode()
    assert "interrupted" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.fault("F50")
def test_json_of_an_interrupted_run_is_one_whole_document() -> None:
    ended = stopped("--json", place="round 1")

    document = json.loads(ended.out)
    assert ended.code == 130
    assert (document["type"], document["text"], document["finish_reason"]) == ("result", answer(2), "interrupted")


def test_ndjson_of_an_interrupted_run_ends_with_its_result() -> None:
    ended = stopped("--format", "ndjson", place="round 1", signum=TERM)

    documents = [json.loads(line) for line in ended.out.splitlines()]
    assert ended.code == 143
    assert [document["type"] for document in documents] == ["start", "prefill", "step", "step", "result"]


def test_the_file_of_an_interrupted_run_has_the_text_shown(tmp_path: Path) -> None:
    ended = stopped("-o", str(tmp_path / "answer.txt"), place="round 1")

    assert (tmp_path / "answer.txt").read_bytes() == ended.out == answer(2).encode()


def test_a_signal_during_the_baseline_keeps_the_whole_answer() -> None:
    ended = stopped("--json", place="baseline")

    document = json.loads(ended.out)
    assert ended.code == 130
    assert (document["text"], document["finish_reason"]) == (answer(3), "stop")


# F51


@pytest.mark.parametrize(("first", "second", "code"), [(INT, INT, 130), (TERM, TERM, 143), (INT, TERM, 143)])
@pytest.mark.fault("F51")
def test_the_second_signal_ends_the_program_at_once(first: signal.Signals, second: signal.Signals, code: int) -> None:
    with Child("generate", "hi", place="round 1") as child:
        child.wait_at_place()
        child.send(first)
        child.send(second)
        ended = child.finish()

    assert ended.code == code
    assert ended.out == answer(1).encode()
    assert "Traceback" not in ended.err


def test_json_is_whole_even_after_the_second_signal() -> None:
    with Child("generate", "hi", "--json", place="round 1") as child:
        child.wait_at_place()
        child.send(INT)
        child.send(INT)
        ended = child.finish()

    document = json.loads(ended.out)
    assert ended.code == 130
    assert (document["text"], document["finish_reason"]) == (answer(1), "interrupted")


# F49


@pytest.mark.fault("F49")
def test_a_signal_during_loading_ends_the_program_silently() -> None:
    with Child("generate", "hi", place="open") as child:
        child.wait_at_place()
        child.send(INT)
        ended = child.finish()

    assert (ended.code, ended.out, ended.err) == (130, b"", "")


SCRIPTS = [
    ["generate", "hi", "--json"],
    ["generate", "hi", "--format", "ndjson"],
    ["verify", "--json"],
    ["doctor", "--json"],
    ["bench", "--format", "json"],
    ["bench", "--format=ndjson"],
]


@pytest.mark.parametrize("place", ["start", "open"])
@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_a_run_stopped_during_loading_still_writes_its_document(words: list[str], place: str) -> None:
    signum, code = (INT, 130) if place == "open" else (TERM, 143)
    with Child(*words, place=place) as child:
        child.wait_at_place()
        child.send(signum)
        ended = child.finish()

    document = json.loads(ended.out)
    assert (ended.code, ended.err) == (code, "")
    assert (document["type"], document["code"], document["exit_code"]) == ("error", "interrupted", code)


@pytest.mark.parametrize("words", [["verify"], ["doctor"], ["bench"]], ids=" ".join)
def test_without_json_a_run_stopped_during_loading_writes_nothing(words: list[str]) -> None:
    with Child(*words, place="open") as child:
        child.wait_at_place()
        child.send(HUP)
        ended = child.finish()

    assert (ended.code, ended.out, ended.err) == (129, b"", "")


def test_a_signal_ignored_at_the_start_stays_ignored() -> None:
    with Child("generate", "hi", "--no-stats", place="round 1", ignores=INT) as child:
        child.wait_at_place()
        child.process.send_signal(INT)
        child.go_on()
        ended = child.finish()

    assert (ended.code, ended.out, ended.err) == (0, answer(3).encode(), "")


def test_a_real_model_finishes_its_round(toy_arguments: list[str]) -> None:
    arguments = ["generate", "hello", *toy_arguments, "--draft", "none", "--json"]
    with Child(*arguments, place="forward 4", module=TOY) as child:
        child.wait_at_place()
        child.send(INT)
        child.go_on()
        ended = child.finish()

    document = json.loads(ended.out)
    assert ended.code == 130
    assert (document["text"], document["finish_reason"]) == ("The quick brown fox", "interrupted")
    assert document["stats"]["num_spec_steps"] == 4
    assert "Traceback" not in ended.err


# --- On a terminal ----------------------------------------------------------------------------------------------------


class Shown:
    """The screen of a terminal after the output of a run."""

    def __init__(self, output: bytes) -> None:
        self.screen = pyte.Screen(80, 60)
        pyte.ByteStream(self.screen).feed(output)
        self.rows = [row.rstrip() for row in self.screen.display if row.strip()]

    def is_restored(self) -> bool:
        attributes = self.screen.cursor.attrs
        plain = (attributes.fg, attributes.bg, attributes.bold, attributes.strikethrough, attributes.reverse)
        return not self.screen.cursor.hidden and plain == ("default", "default", False, False, False)


def test_a_terminal_shows_the_answer_with_its_rejected_tokens_and_is_restored() -> None:
    with Child("generate", "hi", place="round 0", on_terminal=True) as child:
        child.wait_at_place()
        child.go_on()
        ended = child.finish()

    shown = Shown(ended.out)
    assert ended.code == 0
    assert [row.replace("日 ", "日") for row in shown.rows if "word" in row] == [
        f" word{index} wrong 日" for index in range(3)
    ]
    assert shown.is_restored()
    # After the answer, before the statistics: styles off, cursor on.
    assert b"\x1b[0m\x1b[?25h" in ended.out.rpartition("日".encode())[2]
    assert any(row.startswith("TAR") for row in shown.rows)


@pytest.mark.fault("F50")
def test_ctrl_c_keeps_the_text_shown_and_restores_the_terminal() -> None:
    with Child("generate", "hi", place="round 1", on_terminal=True) as child:
        child.wait_at_place()
        child.press_ctrl_c()
        child.go_on()
        ended = child.finish()

    shown = Shown(ended.out)
    assert ended.code == 130
    # The terminal itself shows ^C where the cursor was.
    assert [row.removeprefix("^C") for row in shown.rows if "word" in row][-1].startswith(" word1")
    assert shown.is_restored()
    assert shown.screen.cursor.x == 0
    assert b"Traceback" not in ended.out


@pytest.mark.fault("F51")
def test_ctrl_c_twice_restores_the_terminal_too() -> None:
    with Child("generate", "hi", "--view", "live", place="round 1", on_terminal=True) as child:
        child.wait_at_place()
        child.press_ctrl_c()
        child.press_ctrl_c()
        ended = child.finish()

    assert ended.code == 130
    assert Shown(ended.out).is_restored()
    assert b"Traceback" not in ended.out


def test_ctrl_c_during_loading_erases_the_progress_line() -> None:
    with Child("generate", "hi", place="open", on_terminal=True) as child:
        child.wait_at_place()
        child.press_ctrl_c()
        ended = child.finish()

    shown = Shown(ended.out)
    assert ended.code == 130
    assert [row for row in shown.rows if row != "^C"] == []
    assert shown.is_restored()


# F55


@pytest.mark.parametrize("view", ["inline", "live"])
@pytest.mark.fault("F55")
def test_ctrl_z_suspends_and_the_answer_continues_in_the_foreground(
    toys: dict[str, Path], tmp_path: Path, view: str
) -> None:
    barrier, shell = Barrier(), Shell()
    arguments = ["hello", "-t", str(toys["target"]), "-d", str(toys["wrong"]), "-k", "3", *EXACT, "--view", view]
    terminal = Terminal(
        *arguments, "--baseline", "off", state=tmp_path, prepare=barrier.arm, shell=shell, command="generate"
    )
    try:
        barrier.await_rounds(3)
        terminal.type("\x1a")
        shell.await_stop()
        assert termios.tcgetattr(terminal.fd)[:4] == terminal.before[:4]
        shell.resume()
        barrier.open()
        shown = terminal.all_shown()

        assert terminal.ended() == 0
        # The text before and after the suspension is the whole answer, with the rejected tokens in it.
        assert "The" in shown
        assert shown.rstrip().count("tok/s") == 1
        assert "at日" in shown
    finally:
        terminal.close()


@pytest.mark.fault("F55")
def test_suspended_time_is_in_no_measurement(
    cli: Cli, toy_arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from specgen.models.cached_model import CachedModel

    # The program is suspended for 1000 s by its own clock, in the fourth pass of the target.
    now, passes, logits = [0.0], iter(range(10**6)), CachedModel.logits
    monkeypatch.setattr("specgen.cli.terminal_mode.perf_counter", lambda: now[0])
    monkeypatch.setattr("specgen.runtime.generation.device_clock", lambda *_: lambda: now[0])

    def suspend(pid: int, signum: int) -> None:
        now[0] += 1000.0

    def suspended_once(self: CachedModel, *arguments: Any, **options: Any) -> Any:
        now[0] += 1.0
        if next(passes) == 3:
            signal.raise_signal(signal.SIGTSTP)
        return logits(self, *arguments, **options)

    monkeypatch.setattr(os, "kill", suspend)
    monkeypatch.setattr(CachedModel, "logits", suspended_once)

    ended = cli("generate", "hello", *toy_arguments, "-d", "none", "--json")

    document = json.loads(ended.out)
    assert now[0] > 1000
    assert document["timings"]["decode_s"] == document["stats"]["num_spec_steps"]


# L5


@pytest.mark.parametrize("num_cycles", [3, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
@pytest.mark.fault("F50")
def test_runs_stopped_at_random_rounds_leave_no_temporary_files(num_cycles: int, tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(num_cycles):
        round_index = rng.randrange(1, 12)
        path = tmp_path / "answer.txt"
        ended = stopped("-o", str(path), place=f"round {round_index}", SPECGEN_TEST_ROUNDS="20")

        assert (ended.code, ended.out) == (130, answer(round_index + 1).encode())
        assert [entry.name for entry in tmp_path.iterdir()] == ["answer.txt"]
