"""Runs whole chats in this process: scripted lines, a toy model, real files, and the output captured."""

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

from specgen.cli.chat import file_commands
from specgen.cli.chat import loop as chat_loop
from specgen.cli.chat import reply as chat_reply
from specgen.cli.chat.loop import ChatLoop
from specgen.cli.chat.session import Autosave
from specgen.cli.chat.settings import ChatSettings
from specgen.cli.chat.state import ChatState, ChatTerminal
from specgen.cli.options.groups import SamplingOptions
from specgen.cli.signals import StopSignals
from specgen.cli.streams import Messages, ViewOptions
from specgen.cli.terminal_mode import TerminalMode
from specgen.core.doubt import Doubt
from specgen.core.draft_name import DraftName
from specgen.core.errors import SpecgenError
from specgen.core.events import RoundText
from specgen.core.settings import ModelSettings
from specgen.models.cached_model import CachedModel
from specgen.runtime.conversation import Conversation
from specgen.storage.saved_chats import SessionFolder
from tests.cli.chat.scenes import OWN_TEMPLATE, fresh_ids, open_toy, saved
from tests.toys import ANSWER, save_toy

GREEDY = SamplingOptions(0.0, None, None, None, None, 1)


@dataclass
class ScriptedChat:
    """A chat that reads its lines from a script, and what it printed."""

    state: ChatState
    out: io.BytesIO
    err: io.StringIO
    patch: pytest.MonkeyPatch
    errors: list[SpecgenError]
    """The errors that were printed."""
    lines: list[Any] = field(default_factory=list)
    is_waiting: bool = False
    """Whether `read` can be interrupted, as at a prompt that waits for keys."""
    is_interrupted: bool = False

    @property
    def loop(self) -> ChatLoop:
        return ChatLoop(self.state, self)  # type: ignore[arg-type]

    def run(self, *lines: Any) -> int:
        """Types lines, then Ctrl-D; returns the exit code. A callable is called in place of a line, and may raise."""
        self.lines[:] = lines
        # pytest replaces stdout between the phases of a test.
        self.patch.setattr(sys, "stdout", io.TextIOWrapper(self.out, write_through=True))
        return self.loop.run()

    def read(self) -> str:
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
    def replies(self) -> str:
        """What the chat wrote to stdout."""
        return self.out.getvalue().decode()

    @property
    def printed(self) -> str:
        """What the chat wrote to stderr."""
        return self.err.getvalue()

    @property
    def texts(self) -> list[str]:
        return [message.content for message in self.state.conversation.messages]

    def is_reported(self, code: str, *values: str) -> bool:
        """Whether an error with this code was printed that names the values, in its message or its hint."""
        return any(
            error.code == code and all(value in f"{error.message}\n{error.hint}" for value in values)
            for error in self.errors
        )


Opener = Callable[..., ScriptedChat]


@pytest.fixture
def open_chat(monkeypatch: pytest.MonkeyPatch, talker: Path, state: Path) -> Iterator[Opener]:
    opened: list[ScriptedChat] = []
    entered = ExitStack()
    monkeypatch.setattr(chat_loop, "end_of_input_code", lambda signals: signals.exit_code)

    def make(folder: Path = talker, **changes: Any) -> ScriptedChat:
        out, err = io.BytesIO(), io.StringIO()
        monkeypatch.setattr(sys, "stderr", err)
        settings = changes.pop("settings", None) or ChatSettings(GREEDY, max_new_tokens=60, draft_tokens="3")
        models = open_toy(folder, drafter=changes.pop("drafter", "lookup"))
        conversation = Conversation(models, settings.for_reply(None), OWN_TEMPLATE)
        messages = Messages("never", quiet=False)
        errors = record_errors(messages)
        # The handlers are restored in the opposite order, or the first one would outlive the test.
        signals = entered.enter_context(StopSignals())
        autosave = Autosave(SessionFolder(), is_on=True, warn=messages.warning)

        def replace_draft(name: str) -> list[str]:
            like = ModelSettings("", "none", "float32", "cpu")
            return models.replace_draft(models.pair.with_draft(DraftName(name), like))

        terminal = ChatTerminal(messages, signals, TerminalMode())
        chat_state = ChatState(conversation, terminal, autosave, settings, ViewOptions(default="live"), replace_draft)
        opened.append(ScriptedChat(chat_state, out, err, monkeypatch, errors))
        return opened[-1]

    with entered:
        yield make
    for chat in opened:
        chat.state.autosave.close()


def record_errors(messages: Messages) -> list[SpecgenError]:
    """Returns a list that collects every error that is printed."""
    errors: list[SpecgenError] = []
    printing = messages.error

    def error(error: SpecgenError) -> None:
        errors.append(error)
        printing(error)

    messages.error = error  # type: ignore[method-assign]
    return errors


@pytest.fixture
def chat(open_chat: Opener) -> ScriptedChat:
    return open_chat()


def sessions(state: Path) -> list[Path]:
    return sorted((state / "sessions").glob("*.json"))


def test_a_message_gets_a_reply_a_line_of_statistics_and_a_saved_session(chat: ScriptedChat, state: Path) -> None:
    assert chat.run("Hello") == 0

    assert chat.replies == ANSWER + "\n"
    assert "tok/s" in chat.printed
    assert chat.state.conversation.baseline is not None
    (path,) = sessions(state)
    transcript = saved(path)
    assert [(m.role, m.content) for m in transcript.messages] == [("user", "Hello"), ("assistant", ANSWER)]
    assert transcript.messages[1].stats["num_tokens"] > 10
    assert transcript.target.name.endswith("talker")


def test_the_baseline_is_measured_once_and_every_reply_shows_a_speedup(
    chat: ScriptedChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The passes of a toy are so short that any speedup may be implausible, and an implausible one is not shown.
    monkeypatch.setattr("specgen.render.summary.find_doubt", lambda _: None)
    monkeypatch.setattr(chat_reply, "find_doubt", lambda _: None)
    measured = count_measurements(chat, monkeypatch)

    chat.run("a", "b", "c")

    assert len(measured) == 1
    assert chat.printed.count("x · ") == 3


def count_measurements(chat: ScriptedChat, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Returns a list that grows with each measurement of the baseline."""
    measured: list[object] = []
    calibrate = chat.state.conversation.calibrate

    def counted(generation: Any) -> Any:
        measured.append(generation)
        return calibrate(generation)

    monkeypatch.setattr(chat.state.conversation, "calibrate", counted)
    return measured


def test_the_session_is_saved_after_every_turn(chat: ScriptedChat, state: Path) -> None:
    num_messages = []

    def count() -> None:
        num_messages.append([path.read_text().count('"role"') for path in sessions(state)])

    chat.run("a", count, "b", count, "/undo", count)

    assert num_messages == [[2], [4], [2]]


def test_an_unknown_command_is_not_sent_and_two_slashes_are(chat: ScriptedChat) -> None:
    chat.run("/udno", "//undo")

    assert chat.texts == ["/undo", ANSWER]
    assert chat.is_reported("settings", "/udno", "/undo")


def test_undo_retry_and_clear_change_the_messages(chat: ScriptedChat, state: Path) -> None:
    checks = []

    def check() -> None:
        checks.append(list(chat.texts))

    chat.run("a", "/retry", "b", "/undo", check, "/retry", check, "/clear", check, "/undo", "/retry", "c")

    assert checks == [["a", ANSWER], ["a", ANSWER], []]
    assert [error.code for error in chat.errors] == ["settings", "settings"]
    assert len(sessions(state)) == 2


def test_retry_uses_its_settings_for_one_reply(open_chat: Opener, toy: Path) -> None:
    chat = open_chat(toy, settings=ChatSettings(GREEDY, max_new_tokens=9))

    chat.run("a", "/retry max-new-tokens=3 temperature=1", "b", "/retry x", "/retry temperature=hot")

    stats = [message.stats["num_tokens"] for message in chat.state.conversation.messages if message.role == "assistant"]
    assert stats == [3, 9]
    assert chat.is_reported("settings", "'x'")
    assert chat.is_reported("settings", "temperature", "hot")


def test_edit_sends_the_changed_message_instead_of_the_old_one(
    chat: ScriptedChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_commands, "edit_text", lambda text: text.replace("blue", "green"))

    chat.run("one", "why blue?", "/edit", "/edit")

    assert chat.texts == ["one", ANSWER, "why green?", ANSWER]


def test_a_system_message_is_set_shown_and_removed(chat: ScriptedChat) -> None:
    systems = []

    def check() -> None:
        systems.append(chat.state.conversation.system)

    chat.run("/system", check, "/system Be brief.", check, "/system", "/system none", check, "/system")

    assert systems == [None, "Be brief.", None]
    assert chat.printed.count("Be brief.") == 2


def test_each_reply_after_commands_equals_that_of_a_fresh_prefill(open_chat: Opener, toy: Path) -> None:
    chat = open_chat(toy, settings=ChatSettings(GREEDY, max_new_tokens=12, draft_tokens="3"))
    is_equal = []

    def check() -> None:
        generation = chat.state.last_generation
        assert generation is not None
        is_equal.append(generation.token_ids == fresh_ids(generation.models, generation))

    chat.run("a", check, "b", check, "/undo", "c", check, "/system x", "/retry", check, "/k 1", "d", check)

    assert is_equal == [True] * 5


def test_settings_are_shown_and_changed(chat: ScriptedChat) -> None:
    chat.run("/set temperature 0.7", "/set top_k=4", "/set", "/set temperture 1", "/set temperature")

    assert (chat.state.settings.sampling.temperature, chat.state.settings.sampling.top_k) == (0.7, 4)
    assert re.search(r"^temperature +0\.7$", chat.printed, re.MULTILINE)
    assert re.search(r"^top-k +4$", chat.printed, re.MULTILINE)
    assert [error.code for error in chat.errors] == ["settings", "settings"]
    assert chat.is_reported("settings", "temperture", "temperature?")


@pytest.mark.parametrize("name", ["inline", "text", "steps", "off", "live"])
def test_the_view_changes_during_a_chat(chat: ScriptedChat, name: str) -> None:
    chat.run(f"/view {name}", "a")

    assert chat.state.view.view == name
    assert "quick" in chat.replies


def test_an_unknown_view_suggests_the_closest_one(chat: ScriptedChat) -> None:
    chat.run("/view inlne", "/view")

    assert chat.is_reported("settings", "inlne", "inline?")
    assert "off; " in chat.printed
    assert "auto, inline, live, text, steps, off" in chat.printed


def test_the_draft_changes_during_a_chat(chat: ScriptedChat, talker: Path) -> None:
    drafters = []

    def check() -> None:
        drafters.append(chat.state.conversation.models.pair.settings.drafter)

    chat.run(
        *["/draft none", "a", check, "/draft lookup", check, "/draft", f"/draft {talker}", "b", check],
        *["/draft /nowhere/x", "/draft", check],
    )

    messages = chat.state.conversation.messages
    assert messages[1].stats["num_drafted"] == 0
    assert messages[-1].stats["num_accepted"] > 5
    assert drafters == ["none", "lookup", "model", "model"]
    assert chat.is_reported("model_not_found", "/nowhere/x")


def test_the_draft_length_is_changed_and_checked(chat: ScriptedChat) -> None:
    lengths = []

    def check() -> None:
        lengths.append(chat.state.settings.draft_tokens)

    chat.run("/k 2", check, "/k auto", check, "/k 999", "/k", check)

    assert lengths == ["2", "auto", "auto"]
    assert chat.is_reported("settings", "999")


def test_stats_show_the_reused_tokens_and_the_totals_of_the_session(chat: ScriptedChat) -> None:
    chat.run("/stats", "a", "b", "/stats")

    assert len(chat.errors) == 1
    reused = chat.state.conversation.messages[3].stats["num_reused_tokens"]
    assert re.search(rf"^reused +{reused} of", chat.printed, re.MULTILINE)
    assert re.search(r"^session +2 ", chat.printed, re.MULTILINE)


def test_stats_measure_the_baseline_again_after_a_change_of_the_draft(
    chat: ScriptedChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_reply, "find_doubt", lambda _: None)
    measured = count_measurements(chat, monkeypatch)
    counts = []

    def check() -> None:
        counts.append(len(measured))

    chat.run("a", "/stats", check, "/k 2", "b", check, "/stats", check, "/stats", check)

    assert counts == [1, 1, 2, 2]


def test_the_line_of_statistics_can_be_switched_off(chat: ScriptedChat) -> None:
    chat.run("/stats off", "a", "/stats maybe")

    assert "tok/s" not in chat.printed
    assert chat.is_reported("settings", "maybe")


def test_the_last_reply_is_shown_as_plain_text(chat: ScriptedChat) -> None:
    chat.run("/last", "a", "/last")

    assert chat.replies == f"{ANSWER}\n" * 2
    assert len(chat.errors) == 1


def test_a_file_is_prepended_to_the_next_message(chat: ScriptedChat, tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("ein Text\n日\n")
    (tmp_path / "bad.txt").write_bytes(b"a\xff")
    os.mkfifo(tmp_path / "pipe")

    chat.run(
        *[f"/read {tmp_path}/my notes.txt", "what?", "more"],
        *[f"/read {tmp_path}/bad.txt", f"/read {tmp_path}/pipe", f"/read {tmp_path}/missing", "/read"],
    )

    assert chat.texts[0] == "ein Text\n日\n\nwhat?"
    assert chat.texts[2] == "more"
    assert chat.is_reported("prompt", "bad.txt", "0xff", "offset 1")
    assert chat.is_reported("prompt", f"{tmp_path}/pipe")
    assert chat.is_reported("prompt", f"{tmp_path}/missing")
    assert chat.is_reported("settings", "/read")


def test_a_session_is_saved_under_a_name_and_loaded_again(open_chat: Opener, state: Path) -> None:
    first = open_chat()
    first.run("a", "/save trip", "b", "/save trip", "/save last", "/sessions")
    second = open_chat()
    second.run("x", "/load trop", "/load trip", "c", "/save", "/sessions")

    assert second.texts == ["a", ANSWER, "b", ANSWER, "c", ANSWER]
    assert second.is_reported("settings", "trop", "trip?")
    assert re.search(r"^\S+ \S+  trip  \(", second.printed, re.MULTILINE), "the list marks the current session"
    assert saved(state / "sessions" / "trip.json").messages == second.state.conversation.messages


def test_save_refuses_the_name_of_another_session(open_chat: Opener, state: Path) -> None:
    open_chat().run("a", "/save trip")
    second = open_chat()

    second.run("b", "/save trip")

    assert second.is_reported("settings", "trip")
    assert saved(state / "sessions" / "trip.json").messages[0].content == "a"


def test_load_refuses_a_session_that_another_chat_writes(open_chat: Opener) -> None:
    first, second = open_chat(), open_chat()
    first.lines[:] = []
    first.loop.handle_line("a")
    first.loop.handle_line("/save trip")

    second.run("/load trip", "b")

    assert second.is_reported("session_in_use", "trip", str(os.getpid()))
    assert second.texts == ["b", ANSWER]


def test_a_damaged_session_is_set_aside_and_the_chat_continues(open_chat: Opener, state: Path) -> None:
    (state / "sessions").mkdir(parents=True)
    (state / "sessions" / "trip.json").write_text("{")
    chat = open_chat()

    chat.run("a", "/load trip", "b")

    assert chat.is_reported("settings", "trip.json.corrupt-")
    assert chat.texts == ["a", ANSWER, "b", ANSWER]


def test_tokens_shows_how_full_the_context_window_is(chat: ScriptedChat) -> None:
    chat.run("/tokens", "a", "/tokens")

    assert "0 of 32768 tokens (0 %)" in chat.printed


@pytest.mark.fault("F03")
def test_a_nearly_full_window_is_a_warning_and_a_full_one_an_error_with_the_choices(
    open_chat: Opener, tmp_path: Path
) -> None:
    chat = open_chat(save_toy(tmp_path / "small", num_positions=160), settings=ChatSettings(GREEDY, 5))

    chat.run(" fox" * 110, " fox" * 50, "a", "a")

    assert "93 % full (149 of 160 tokens)" in chat.printed
    assert chat.texts == ["fox" + " fox" * 109, "The quick brown fox drinks", "a", "The quick"]
    assert chat.is_reported("prompt", "160", "/undo", "/clear")


@pytest.mark.fault("F65")
def test_a_folder_that_can_t_be_written_is_reported_once_and_the_chat_continues(
    open_chat: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECGEN_STATE", "/proc/nowhere")
    chat = open_chat()

    assert chat.run("a", "b") == 0

    assert chat.texts == ["a", ANSWER, "b", ANSWER]
    assert chat.printed.count("/proc/nowhere") == 1


@pytest.mark.fault("F62")
def test_a_disk_that_fills_up_ends_with_7_and_keeps_the_text_shown_and_the_old_session(
    chat: ScriptedChat, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert chat.run("a", lambda: monkeypatch.setattr(os, "write", full), "b", "c") == 7

    assert chat.replies == f"{ANSWER}\n" * 3
    assert chat.printed.count("No space left on device") == 2, "one warning, and the error at the end"
    monkeypatch.undo()
    (path,) = sessions(state)
    assert len(saved(path).messages) == 2


def test_saving_works_again_once_the_disk_has_recovered(chat: ScriptedChat, state: Path) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        assert chat.run("a", lambda: patch.setattr(os, "fsync", fail), "b", patch.undo, "c") == 0

    assert chat.state.autosave.failure is None
    (path,) = sessions(state)
    assert len(saved(path).messages) == 6


def at_round(chat: ScriptedChat, number: int, act: Callable[[], None]) -> None:
    """Calls a function before the first reply shows its round with this number."""
    new_view = ViewOptions.new_view

    def watched(options: ViewOptions) -> Any:
        chat.patch.setattr(ViewOptions, "new_view", new_view)
        view = new_view(options)
        show = view.show

        def showing(event: Any) -> None:
            if isinstance(event, RoundText) and event.round.index == number:
                act()
            show(event)

        view.show = showing  # type: ignore[method-assign]
        return view

    chat.patch.setattr(ViewOptions, "new_view", watched)


def raise_signal(number: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


def test_the_first_ctrl_c_keeps_the_reply_and_the_chat_continues(open_chat: Opener, toy: Path) -> None:
    chat = open_chat(toy, settings=ChatSettings(GREEDY, max_new_tokens=30, draft_tokens="2"))
    at_round(chat, 3, raise_signal(signal.SIGINT))

    assert chat.run("a", "b") == 0

    first, second = [message for message in chat.state.conversation.messages if message.role == "assistant"]
    assert (first.interrupted, first.stats["num_rounds"]) == (True, 4)
    assert first.stats["finish_reason"] == "interrupted"
    assert second.stats["num_tokens"] == 30
    generation = chat.state.last_generation
    assert generation is not None
    assert generation.token_ids == fresh_ids(generation.models, generation)


def test_no_baseline_is_measured_after_a_stopped_reply(open_chat: Opener, toy: Path) -> None:
    chat = open_chat(toy, settings=ChatSettings(GREEDY, max_new_tokens=60, draft_tokens="2"))
    at_round(chat, 12, raise_signal(signal.SIGINT))
    baselines: list[object] = []
    lengths: list[int] = []

    def check() -> None:
        assert chat.state.last_generation is not None
        lengths.append(len(chat.state.last_generation.token_ids))
        baselines.append(chat.state.conversation.baseline)

    chat.run("a", check, "b", check)

    assert lengths[0] >= 8, "long enough for a measurement"
    assert baselines[0] is None
    assert baselines[1] is not None


def test_a_doubtful_baseline_is_measured_again_after_the_next_reply(
    chat: ScriptedChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubts = [Doubt.IMPOSSIBLE, None, None, None]
    monkeypatch.setattr(chat_reply, "find_doubt", lambda report: doubts.pop(0))
    measured = count_measurements(chat, monkeypatch)
    counts = []

    def check() -> None:
        counts.append(len(measured))

    chat.run("a", check, "b", check, "c", check)

    assert (counts[0], counts[-1]) == (1, 2)


def test_leaving_shows_the_command_that_continues(chat: ScriptedChat, state: Path) -> None:
    assert chat.run("a") == 0

    (path,) = sessions(state)
    assert f"--resume {path.stem}" in chat.printed.splitlines()[-1]


def test_leaving_without_a_message_shows_no_command_that_continues(chat: ScriptedChat) -> None:
    assert chat.run("/help") == 0

    assert "--resume" not in chat.printed


def test_a_session_outside_of_the_folder_is_resumed_by_its_path(chat: ScriptedChat, tmp_path: Path) -> None:
    assert chat.run("a", f"/save {tmp_path}/my chat.json") == 0

    assert f"--resume '{tmp_path}/my chat.json'" in chat.printed.splitlines()[-1]


def test_save_to_a_missing_folder_is_an_error_with_a_hint(chat: ScriptedChat) -> None:
    chat.run("a", "/save nowhere/to/be")

    (error,) = chat.errors
    assert "nowhere/to" in error.message
    assert error.hint


def test_the_second_ctrl_c_leaves_with_130_and_saves_the_session(chat: ScriptedChat, state: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_round(chat, 2, twice)

    assert chat.run("a") == 130

    (path,) = sessions(state)
    messages = saved(path).messages
    assert messages[1].interrupted
    assert messages[1].content
    assert ANSWER.startswith(messages[1].content)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_sigterm_and_sighup_save_the_partial_reply(chat: ScriptedChat, state: Path, number: int, code: int) -> None:
    at_round(chat, 2, raise_signal(number))

    assert chat.run("a", "never reached") == code

    (path,) = sessions(state)
    messages = saved(path).messages
    assert [message.interrupted for message in messages] == [False, True]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_sigterm_and_sighup_at_the_prompt_save_and_leave(
    chat: ScriptedChat, state: Path, number: int, code: int
) -> None:
    assert chat.run("a", raise_signal(number)) == code

    assert len(sessions(state)) == 1


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_ctrl_c_does_not_hide_another_signal_at_the_same_time(chat: ScriptedChat, numbers: tuple[int, int]) -> None:
    chat.is_waiting = True

    def both() -> None:
        for number in numbers:
            signal.raise_signal(number)

    assert chat.run("a", both) == 143


def test_a_signal_while_ctrl_c_leaves_the_prompt_is_not_lost(chat: ScriptedChat) -> None:
    chat.is_waiting = True

    def leave() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt

    assert chat.run("a", leave) == 143


LEAVE_HINT = "/exit leaves"


def test_ctrl_c_before_the_prompt_waits_for_keys_is_an_empty_line(chat: ScriptedChat) -> None:
    assert chat.run("a", raise_signal(signal.SIGINT), "b") == 0

    assert LEAVE_HINT in chat.printed
    assert chat.texts == ["a", ANSWER, "b", ANSWER]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)])
def test_a_signal_while_the_prompt_waits_ends_the_wait_without_an_exception(
    chat: ScriptedChat, number: int, code: int
) -> None:
    chat.is_waiting = True

    assert chat.run("a", raise_signal(number), *["/exit"] * (code == 0)) == code

    assert (LEAVE_HINT in chat.printed) == (number == signal.SIGINT)


def test_ctrl_c_during_the_prefill_removes_the_message(chat: ScriptedChat, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CachedModel._forward
    calls: list[int] = []

    def forward(self: CachedModel, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    monkeypatch.setattr(CachedModel, "_forward", forward)

    assert chat.run("a", "b") == 0

    assert chat.texts == ["b", ANSWER]


def test_ctrl_c_at_an_empty_prompt_shows_how_to_leave(chat: ScriptedChat) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert chat.run(interrupt, "a") == 0

    assert LEAVE_HINT in chat.printed
    assert chat.texts == ["a", ANSWER]


def test_a_reply_that_fails_is_reported_and_the_chat_continues(
    chat: ScriptedChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CachedModel.logits
    calls: list[int] = []

    def failing(self: CachedModel, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        logits = real(self, *arguments, **options)
        return logits * float("nan") if len(calls) == 3 else logits

    monkeypatch.setattr(CachedModel, "logits", failing)

    assert chat.run("a", "b") == 0

    assert [error.code for error in chat.errors] == ["numerical"]
    assert chat.state.conversation.messages[1].interrupted
    assert chat.texts[-1] == ANSWER


def test_no_text_from_outside_controls_the_terminal(open_chat: Opener, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x9b2J\u202e"
    chat = open_chat()
    path = tmp_path / f"n{evil.replace('/', '')}.txt"
    path.write_text(evil)

    chat.run(
        *[f"/system {evil}", f"/nope{evil}", f"/read {path}", "a", "/undo", f"/view {evil}", f"/set {evil} 1"],
        *[f"/draft /x{evil}", f"/load {evil}", f"/save {evil}", f"/k {evil}", f"/stats {evil}", f"/retry {evil}=1"],
        "/last",
    )

    for unsafe in ("\x1b", "\x07", "\x9b", "\u202e"):
        assert unsafe not in chat.printed
    assert "owned" in chat.printed
