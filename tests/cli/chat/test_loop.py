"""A whole chat in this process: lines from a script, a toy model, real files; what is shown is read back."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from specgen.cli.chat import loop as chat_loop
from specgen.cli.chat.autosave import Autosave
from specgen.cli.chat.loop import Chat
from specgen.cli.chat.reply import DisplayOptions
from specgen.cli.chat.settings import ChatSettings
from specgen.cli.request import SamplingOptions
from specgen.cli.signals import StopSignals
from specgen.cli.streams import Messages
from specgen.cli.terminal_mode import TerminalMode
from specgen.core.events import RoundText
from specgen.core.settings import ModelSettings
from specgen.models.transformers_model import CachedModel
from specgen.runtime.conversation import Conversation
from specgen.storage import saved_chats
from specgen.storage.saved_chats import SessionFolder
from tests.cli.chat.scenes import OWN_TEMPLATE, fresh_ids, open_toy, saved
from tests.toys import ANSWER

GREEDY = SamplingOptions(0.0, None, None, None, None, 1)


@dataclass
class Stage:
    """A chat, and what it said."""

    chat: Chat
    out: io.BytesIO
    err: io.StringIO
    patch: pytest.MonkeyPatch
    lines: list[Any] = field(default_factory=list)
    is_waiting: bool = False
    """Whether its `read` can be interrupted, as at a prompt that waits for keys."""
    is_interrupted: bool = False

    def play(self, *lines: Any) -> int:
        """Type lines, then Ctrl-D. A callable is called in place of a line; it may raise."""
        self.lines[:] = lines
        # pytest sets stdout back between the phases of a test.
        self.patch.setattr(sys, "stdout", io.TextIOWrapper(self.out, write_through=True))
        return self.chat.run()

    def read(self, default: str = "") -> str:
        while self.lines:
            line = self.lines.pop(0)
            if isinstance(line, str):
                return line
            line()
            if self.is_interrupted:
                self.is_interrupted = False
                return ""
        raise EOFError

    def interrupt(self) -> bool:
        self.is_interrupted = self.is_waiting
        return self.is_waiting

    @property
    def said(self) -> str:
        return self.out.getvalue().decode()

    @property
    def told(self) -> str:
        return self.err.getvalue()

    @property
    def texts(self) -> list[str]:
        return [message.content for message in self.chat.conversation.messages]


Opener = Callable[..., Stage]


@pytest.fixture
def open_stage(monkeypatch: pytest.MonkeyPatch, talker: Path, state: Path) -> Iterator[Opener]:
    opened: list[Stage] = []
    entered = ExitStack()
    monkeypatch.setattr(chat_loop.Chat, "_hangup_code", lambda self: self.signals.exit_code)

    def make(folder: Path = talker, **changes: Any) -> Stage:
        out, err = io.BytesIO(), io.StringIO()
        monkeypatch.setattr(sys, "stderr", err)
        settings = changes.pop("settings", None) or ChatSettings(GREEDY, max_new_tokens=60, draft_tokens="3")
        models = open_toy(folder, drafter=changes.pop("drafter", "lookup"))
        conversation = Conversation(models, settings.for_reply(None), OWN_TEMPLATE)
        messages = Messages("never", quiet=False, environ={})
        # Left in the order opposite to the entering, or the first handler would outlive the test.
        signals = entered.enter_context(StopSignals())
        saving = Autosave(SessionFolder(), changes.pop("file", None), is_on=True, warn=messages.warning)

        def open_draft(name: str) -> list[str]:
            draft = None if name in ("lookup", "none") else ModelSettings(name, "none", "float32", "cpu")
            return models.replace_drafter(models.pair.with_drafter("model" if draft else name, draft))  # type: ignore[arg-type]

        terminal = TerminalMode()
        chat = Chat(conversation, None, messages, signals, saving, settings, DisplayOptions(), terminal, open_draft)  # type: ignore[arg-type]
        stage = Stage(chat, out, err, monkeypatch)
        chat.editor = stage  # type: ignore[assignment]
        opened.append(stage)
        return stage

    with entered:
        yield make
    for stage in opened:
        stage.chat.saving.close()


@pytest.fixture
def stage(open_stage: Opener) -> Stage:
    return open_stage()


def sessions(state: Path) -> list[Path]:
    return sorted((state / "sessions").glob("*.json"))


def test_a_question_gets_its_reply_a_line_of_figures_and_a_saved_session(stage: Stage, state: Path) -> None:
    assert stage.play("Hello") == 0

    assert stage.said == ANSWER + "\n"
    assert "tok/s" in stage.told
    assert "the target alone was timed once" in stage.told
    (path,) = sessions(state)
    transcript = saved(path)
    assert [(m.role, m.content) for m in transcript.messages] == [("user", "Hello"), ("assistant", ANSWER)]
    assert transcript.messages[1].stats["num_tokens"] > 10
    assert transcript.target.name.endswith("talker")


def test_the_speedup_is_timed_once_and_shown_for_every_reply(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    # A toy's passes are so short that any figure may be impossible, and then it is left out.
    monkeypatch.setattr("specgen.render.summary.why_doubtful", lambda _: "")

    stage.play("a", "b", "c")

    assert stage.told.count("timed once") == 1
    assert stage.told.count("x · ") == 3


def test_the_session_is_saved_after_every_turn(stage: Stage, state: Path) -> None:
    seen = []

    def look() -> None:
        seen.append([path.read_text().count('"role"') for path in sessions(state)])

    stage.play("a", look, "b", look, "/undo", look)

    assert seen == [[2], [4], [2]]


def test_an_unknown_command_is_not_sent_and_two_slashes_are(stage: Stage) -> None:
    stage.play("/udno", "//undo")

    assert stage.texts == ["/undo", ANSWER]
    assert "there is no command /udno" in stage.told
    assert "did you mean /undo?" in stage.told


def test_undo_retry_and_clear_change_what_was_said(stage: Stage, state: Path) -> None:
    checks = []

    def check() -> None:
        checks.append(list(stage.texts))

    stage.play("a", "/retry", "b", "/undo", check, "/retry", check, "/clear", check, "/undo", "/retry", "c")

    assert checks == [["a", ANSWER], ["a", ANSWER], []]
    assert "greedy: the reply will be the same" in stage.told
    assert "nothing to undo" in stage.told
    assert "no message to reply to" in stage.told
    assert len(sessions(state)) == 2


def test_retry_takes_settings_for_once(open_stage: Opener, toy: Path) -> None:
    stage = open_stage(toy, settings=ChatSettings(GREEDY, max_new_tokens=9))

    stage.play("a", "/retry max-new-tokens=3 temperature=1", "b", "/retry x", "/retry temperature=hot")

    stats = [message.stats["num_tokens"] for message in stage.chat.conversation.messages if message.role == "assistant"]
    assert stats == [3, 9]
    assert "x is no NAME=VALUE" in stage.told
    assert "temperature hot is no number" in stage.told


def test_edit_sends_the_changed_message_in_place_of_the_old(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specgen.cli.chat.line_editor.edit_text", lambda text: text.replace("blue", "green"))

    stage.play("one", "why blue?", "/edit", "/edit")

    assert stage.texts == ["one", ANSWER, "why green?", ANSWER]
    assert "unchanged; nothing is sent" in stage.told


def test_a_system_message_is_set_shown_and_removed(stage: Stage) -> None:
    stage.play("/system", "/system Be brief.", "/system", "/system none", "/system")

    assert stage.told.count("no system message") == 3
    assert stage.told.count("system message: Be brief.") == 2


def test_each_reply_after_commands_is_that_of_a_fresh_prefill(open_stage: Opener, toy: Path) -> None:
    stage = open_stage(toy, settings=ChatSettings(GREEDY, max_new_tokens=12, draft_tokens="3"))
    seen = []

    def check() -> None:
        generation = stage.chat.last
        assert generation is not None
        seen.append(generation.token_ids == fresh_ids(generation.models, generation))

    stage.play("a", check, "b", check, "/undo", "c", check, "/system x", "/retry", check, "/k 1", "d", check)

    assert seen == [True] * 5


def test_settings_are_shown_and_changed(stage: Stage) -> None:
    stage.play("/set temperature 0.7", "/set top_k=4", "/set", "/set temperture 1", "/set temperature")

    assert "temperature         0.7" in stage.told
    assert "top-k               4" in stage.told
    assert "did you mean temperature?" in stage.told
    assert "/set temperature needs a value" in stage.told


@pytest.mark.parametrize("name", ["inline", "text", "steps", "off", "live"])
def test_a_view_is_chosen_while_it_runs(stage: Stage, name: str) -> None:
    stage.play(f"/view {name}", "a")

    assert f"view: {name}" in stage.told
    assert "quick" in stage.said


def test_an_unknown_view_names_the_nearest(stage: Stage) -> None:
    stage.play("/view inlne", "/view")

    assert "did you mean inline?" in stage.told
    assert "view: off; there are auto, inline, live, text, steps, off" in stage.told


def test_the_draft_is_changed_while_it_runs(stage: Stage, talker: Path, tmp_path: Path) -> None:
    stage.play("/draft none", "a", "/draft lookup", "/draft", f"/draft {talker}", "b", "/draft /nowhere/x", "/draft")

    messages = stage.chat.conversation.messages
    assert messages[1].stats["num_drafted"] == 0
    assert messages[-1].stats["num_accepted"] > 5
    assert "draft: none, plain decoding" in stage.told
    assert "draft: prompt lookup, no model" in stage.told
    assert "no model at /nowhere/x" in stage.told
    assert stage.told.rstrip().splitlines()[-2].startswith("draft: talker")


def test_k_is_changed_and_checked(stage: Stage) -> None:
    stage.play("/k 2", "/k auto", "/k 999", "/k")

    assert "drafts of 2 tokens" in stage.told
    assert "999 is out of range" in stage.told
    assert stage.chat.settings.draft_tokens == "auto"


def test_stats_tell_what_was_reused_and_the_session_s_totals(stage: Stage) -> None:
    stage.play("/stats", "a", "b", "/stats")

    assert "there are no figures yet" in stage.told
    assert "prompt tokens were in the cache" in stage.told
    assert "2 replies" in stage.told
    reused = stage.chat.conversation.messages[3].stats["num_reused_tokens"]
    assert f"{reused} of" in stage.told


def test_after_a_change_of_the_draft_stats_time_the_target_anew(stage: Stage) -> None:
    stage.play("a", "/stats", "/k 2", "b", "/stats", "/stats")

    assert stage.told.count("timed anew") == 1


def test_the_line_of_figures_can_be_switched_off(stage: Stage) -> None:
    stage.play("/stats off", "a", "/stats maybe")

    assert "tok/s" not in stage.told
    assert "neither on nor off" in stage.told


def test_the_last_reply_comes_as_plain_text(stage: Stage) -> None:
    stage.play("/last", "a", "/last")

    assert stage.said == f"{ANSWER}\n" * 2
    assert "there is no reply yet" in stage.told


def test_a_file_goes_in_front_of_the_next_message(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("ein Text\n日\n")
    (tmp_path / "bad.txt").write_bytes(b"a\xff")
    os.mkfifo(tmp_path / "pipe")

    stage.play(
        f"/read {tmp_path}/my notes.txt",
        "what?",
        "more",
        f"/read {tmp_path}/bad.txt",
        f"/read {tmp_path}/pipe",
        "/read",
    )

    assert stage.texts[0] == "ein Text\n日\n\nwhat?"
    assert stage.texts[2] == "more"
    assert "is not UTF-8: byte 0xff at offset 1" in stage.told
    assert "pipe is no file" in stage.told


def test_a_session_is_saved_under_a_name_and_loaded_again(open_stage: Opener, state: Path) -> None:
    first = open_stage()
    first.play("a", "/save trip", "b", "/save trip", "/save last", "/sessions")
    second = open_stage()
    second.play("x", "/load trop", "/load trip", "c", "/save", "/sessions")

    assert second.texts == ["a", ANSWER, "b", ANSWER, "c", ANSWER]
    assert "did you mean trip?" in second.told
    assert "4 messages are back" in second.told
    assert "trip  (this one)" in second.told
    assert saved(state / "sessions" / "trip.json").messages == second.chat.conversation.messages


def test_a_name_another_session_has_is_not_taken(open_stage: Opener, state: Path) -> None:
    open_stage().play("a", "/save trip")
    second = open_stage()

    second.play("b", "/save trip")

    assert "there is a session trip already" in second.told
    assert saved(state / "sessions" / "trip.json").messages[0].content == "a"


def test_a_session_another_chat_writes_is_not_loaded(open_stage: Opener) -> None:
    first, second = open_stage(), open_stage()
    first.lines[:] = []
    first.chat.take("a")
    first.chat.take("/save trip")

    second.play("/load trip", "b")

    assert f"the session trip is in use by process {os.getpid()}" in second.told
    assert second.texts == ["b", ANSWER]


def test_a_damaged_session_is_set_aside_and_the_chat_goes_on(open_stage: Opener, state: Path) -> None:
    (state / "sessions").mkdir(parents=True)
    (state / "sessions" / "trip.json").write_text("{")
    stage = open_stage()

    stage.play("a", "/load trip", "b")

    assert "trip.json.corrupt-" in stage.told
    assert stage.texts == ["a", ANSWER, "b", ANSWER]


def test_tokens_tell_how_full_the_window_is(stage: Stage) -> None:
    stage.play("/tokens", "a", "/tokens")

    assert "0 of 32768 tokens (0 %)" in stage.told


@pytest.mark.fault("F03")
def test_nearly_full_is_warned_of_and_full_refused_with_the_choices(open_stage: Opener, tmp_path: Path) -> None:
    from tests.toys import save_toy

    stage = open_stage(save_toy(tmp_path / "small", num_positions=160), settings=ChatSettings(GREEDY, 5))

    stage.play(" fox" * 110, " fox" * 50, "a", "a")

    assert "the context is 93 % full (149 of 160 tokens)" in stage.told
    assert stage.texts == ["fox" + " fox" * 109, "The quick brown fox drinks", "a", "The quick"]
    assert "the model's window has 160" in stage.told
    assert "/undo takes back the last exchange, /clear starts anew" in stage.told


@pytest.mark.fault("F65")
def test_a_folder_that_can_t_be_written_is_told_once_and_the_chat_goes_on(
    open_stage: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECGEN_STATE", "/proc/nowhere")
    stage = open_stage()

    assert stage.play("a", "b") == 0

    assert stage.texts == ["a", ANSWER, "b", ANSWER]
    assert stage.told.count("this session is not saved: cannot create the folder") == 1


@pytest.mark.fault("F62")
def test_a_disk_that_fills_up_ends_with_7_the_text_shown_and_the_old_session_there(
    stage: Stage, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert stage.play("a", lambda: monkeypatch.setattr(saved_chats.os, "write", full), "b", "c") == 7

    assert stage.said == f"{ANSWER}\n" * 3
    assert stage.told.count("the next turn tries again") == 1
    monkeypatch.undo()
    (path,) = sessions(state)
    assert len(saved(path).messages) == 2


def test_a_disk_with_room_again_is_written_and_all_is_well(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def break_() -> None:
        saved_chats.os.fsync = broken

    def mend() -> None:
        saved_chats.os.fsync = real

    try:
        assert stage.play("a", break_, "b", mend, "c") == 0
    finally:
        mend()


def at_round(stage: Stage, number: int, act: Callable[[], None]) -> None:
    """Act while the reply shows a round."""
    real = stage.chat.look.new_view

    def new_view() -> Any:
        view = real()
        show = view.show

        def showing(event: Any) -> None:
            if isinstance(event, RoundText) and event.round.index == number:
                act()
            show(event)

        view.show = showing
        return view

    stage.chat.look.new_view = new_view  # type: ignore[method-assign]


def raise_signal(number: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


def test_the_first_ctrl_c_keeps_the_reply_and_the_chat_goes_on(open_stage: Opener, toy: Path) -> None:
    stage = open_stage(toy, settings=ChatSettings(GREEDY, max_new_tokens=30, draft_tokens="2"))
    at_round(stage, 3, raise_signal(signal.SIGINT))

    assert stage.play("a", lambda: setattr(stage.chat, "look", DisplayOptions()), "b") == 0

    first, second = [message for message in stage.chat.conversation.messages if message.role == "assistant"]
    assert (first.interrupted, first.stats["num_rounds"]) == (True, 4)
    assert first.stats["finish_reason"] == "interrupted"
    assert second.stats["num_tokens"] == 30
    assert "interrupted" in stage.told
    generation = stage.chat.last
    assert generation is not None
    assert generation.token_ids == fresh_ids(generation.models, generation)


def test_a_stopped_reply_is_not_followed_by_a_measurement(open_stage: Opener, toy: Path) -> None:
    stage = open_stage(toy, settings=ChatSettings(GREEDY, max_new_tokens=60, draft_tokens="2"))
    at_round(stage, 12, raise_signal(signal.SIGINT))
    stage.chat.look.calibrates = True
    found: list[object] = []
    lengths: list[int] = []

    stage.play(
        "a",
        lambda: lengths.append(0 if stage.chat.last is None else len(stage.chat.last.token_ids)),
        lambda: found.append(stage.chat.conversation.baseline),
        lambda: setattr(stage.chat, "look", DisplayOptions()),
        "b",
        lambda: found.append(stage.chat.conversation.baseline),
    )

    # Long enough for the timing.
    assert lengths[0] >= 8
    assert found[0] is None
    assert found[1] is not None


def test_a_timing_that_was_disturbed_is_repeated_behind_the_next_reply(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubts = ["not possible", "", "", ""]
    monkeypatch.setattr(chat_loop, "why_doubtful", lambda report: doubts.pop(0))
    stage.chat.look.calibrates = True

    stage.play("a", "b", "c")

    assert re.findall(r"timed (\w+), on 8 tokens", stage.told) == ["once", "again"]


def test_leaving_says_how_to_go_on(stage: Stage, state: Path) -> None:
    assert stage.play("a") == 0

    (path,) = sessions(state)
    assert stage.told.endswith(f"saved; specgen chat --resume {path.stem} goes on\n")


def test_leaving_without_a_word_said_has_nothing_to_go_on_with(stage: Stage) -> None:
    assert stage.play("/help") == 0

    assert "--resume" not in stage.told


def test_a_session_elsewhere_is_named_by_its_path(stage: Stage, tmp_path: Path) -> None:
    assert stage.play("a", f"/save {tmp_path}/my chat.json") == 0

    assert stage.told.endswith(f"saved; specgen chat --resume '{tmp_path}/my chat.json' goes on\n")


def test_a_folder_that_is_missing_is_told_with_what_to_do(stage: Stage) -> None:
    stage.play("a", "/save nowhere/to/be")

    assert "hint: create the folder first" in stage.told


def test_the_second_ctrl_c_leaves_with_130_and_the_session_saved(stage: Stage, state: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_round(stage, 2, twice)

    assert stage.play("a") == 130

    (path,) = sessions(state)
    messages = saved(path).messages
    assert messages[1].interrupted
    assert messages[1].content
    assert ANSWER.startswith(messages[1].content)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_sigterm_and_sighup_save_the_partial_reply(stage: Stage, state: Path, number: int, code: int) -> None:
    at_round(stage, 2, raise_signal(number))

    assert stage.play("a", "never reached") == code

    (path,) = sessions(state)
    messages = saved(path).messages
    assert [message.interrupted for message in messages] == [False, True]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_sigterm_and_sighup_at_the_prompt_save_and_leave(stage: Stage, number: int, code: int) -> None:
    assert stage.play("a", raise_signal(number)) == code


@pytest.mark.parametrize("others", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_ctrl_c_hides_no_other_signal_that_comes_beside_it(stage: Stage, others: tuple[int, int]) -> None:
    stage.is_waiting = True

    def both() -> None:
        for number in others:
            signal.raise_signal(number)

    assert stage.play("a", both) == 143


def test_a_signal_while_ctrl_c_leaves_the_prompt_is_not_lost(stage: Stage) -> None:
    stage.is_waiting = True

    def leave() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    assert stage.play("a", leave) == 143


def test_ctrl_c_before_the_prompt_waits_for_keys_is_an_empty_line(stage: Stage) -> None:
    assert stage.play("a", raise_signal(signal.SIGINT), "b") == 0

    assert "Ctrl-D or /exit leaves" in stage.told
    assert stage.texts == ["a", ANSWER, "b", ANSWER]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)])
def test_a_signal_while_keys_are_awaited_ends_the_wait_without_an_exception(
    stage: Stage, number: int, code: int
) -> None:
    stage.is_waiting = True

    assert stage.play("a", raise_signal(number), *["/exit"] * (code == 0)) == code

    assert ("Ctrl-D or /exit leaves" in stage.told) == (number == signal.SIGINT)


def test_ctrl_c_while_the_prompt_is_read_takes_the_message_back(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CachedModel._forward
    calls: list[int] = []

    def forward(self: CachedModel, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    monkeypatch.setattr(CachedModel, "_forward", forward)

    assert stage.play("a", "b") == 0

    assert stage.texts == ["b", ANSWER]
    assert "your message is taken back" in stage.told


def test_ctrl_c_at_an_empty_prompt_says_how_to_leave(stage: Stage) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert stage.play(interrupt, "a") == 0

    assert "Ctrl-D or /exit leaves" in stage.told
    assert stage.texts == ["a", ANSWER]


def test_a_reply_that_breaks_is_told_and_the_chat_goes_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CachedModel.logits
    calls: list[int] = []

    def breaking(self: CachedModel, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        logits = real(self, *arguments, **options)
        return logits * float("nan") if len(calls) == 3 else logits

    monkeypatch.setattr(CachedModel, "logits", breaking)

    assert stage.play("a", "b") == 0

    assert "NaN" in stage.told
    assert stage.chat.conversation.messages[1].interrupted
    assert stage.texts[-1] == ANSWER


def test_nothing_from_outside_acts_on_the_terminal(open_stage: Opener, state: Path, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x9b2J\u202e"
    stage = open_stage()
    path = tmp_path / f"n{evil.replace('/', '')}.txt"
    path.write_text(evil)

    stage.play(
        *[f"/system {evil}", f"/nope{evil}", f"/read {path}", "a", "/undo", f"/view {evil}", f"/set {evil} 1"],
        *[f"/draft /x{evil}", f"/load {evil}", f"/save {evil}", f"/k {evil}", f"/stats {evil}", f"/retry {evil}=1"],
        "/last",
    )

    for unsafe in ("\x1b", "\x07", "\x9b", "\u202e"):
        assert unsafe not in stage.told
    assert "owned" in stage.told
