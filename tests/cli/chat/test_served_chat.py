"""`specgen chat --server`: whole chats in this process, against a fake server."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from specgen.cli.chat import loop as chat_loop
from specgen.cli.chat.run import _refuse_draft
from specgen.cli.chat.session import Autosave, resumed_models
from specgen.cli.chat.settings import ChatSettings
from specgen.cli.chat.state import ChatState, ChatTerminal
from specgen.cli.signals import StopSignals
from specgen.cli.streams import Messages, ViewOptions
from specgen.cli.terminal_mode import TerminalMode
from specgen.core.draft_name import AUTO_DRAFT
from specgen.core.events import ServedText
from specgen.core.settings import ModelSettings
from specgen.runtime.servers.conversation import ServedConversation
from specgen.storage.saved_chats import SessionFolder
from tests.cli.chat.scenes import saved
from tests.cli.chat.test_loop import GREEDY, ScriptedChat, record_errors, sessions
from tests.cli.conftest import Cli
from tests.runtime.servers.fake import (
    KEY,
    LLAMA_PAGES,
    LLAMA_STREAM,
    PLAIN_PAGES,
    VLLM_PAGES,
    Fake,
    Reply,
    as_events,
    as_json,
    chunk,
    opened,
    plain_answer,
    recorded,
    serving,
    timed,
)

Opener = Callable[..., tuple[ScriptedChat, Fake]]


@pytest.fixture
def open_chat(monkeypatch: pytest.MonkeyPatch, state: Path) -> Iterator[Opener]:
    monkeypatch.setattr(chat_loop, "end_of_input_code", lambda signals: signals.exit_code)
    with ExitStack() as entered:

        def make(
            *replies: Any, pages: dict[str, Any] = PLAIN_PAGES, baseline: Sequence[Any] = (), key: str = ""
        ) -> tuple[ScriptedChat, Fake]:
            fake = entered.enter_context(serving(pages, *replies))
            compared = entered.enter_context(serving(pages, *baseline)) if baseline else None
            compared_server = opened(compared.url) if compared else None
            out, err = io.BytesIO(), io.StringIO()
            monkeypatch.setattr(sys, "stderr", err)
            settings = ChatSettings(GREEDY, max_new_tokens=60)
            server = opened(fake.url, key)
            conversation = ServedConversation(server, settings.for_reply(None), baseline_server=compared_server)
            entered.callback(conversation.finish)
            messages = Messages("never", quiet=False)
            errors = record_errors(messages)
            terminal = ChatTerminal(messages, entered.enter_context(StopSignals()), TerminalMode())
            autosave = Autosave(SessionFolder(), is_on=True, warn=messages.warning)
            entered.callback(autosave.close)
            view = ViewOptions(default="live")
            chat = ChatState(conversation, terminal, autosave, settings, view, _refuse_draft, calibrates=bool(baseline))
            return ScriptedChat(chat, out, err, monkeypatch, errors), fake

        yield make


def roles_and_texts(request: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request["messages"]]


def test_each_turn_sends_the_whole_history(open_chat: Opener) -> None:
    chat, fake = open_chat(plain_answer("one"), plain_answer("two"), plain_answer("three"))
    chat.state.conversation.set_system("Be brief.")

    assert chat.run("a", "b", "c") == 0

    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")]
    assert [roles_and_texts(request) for request in fake.requests] == [
        turns[:2],
        turns[:4],
        [*turns, ("user", "c")],
    ]
    assert chat.replies == "one\ntwo\nthree\n"


def test_the_speedup_of_each_turn_is_that_over_the_baseline_server(open_chat: Opener) -> None:
    chat, fake = open_chat(
        timed(2.0, "one", 4, draft_n=2, draft_n_accepted=1),
        timed(1.0, "two", 4, draft_n=2, draft_n_accepted=1),
        pages=LLAMA_PAGES,
        baseline=[timed(3.0, "one", 4)],
    )
    found = []
    for turn in ("a", "b"):
        chat.run(turn)
        assert chat.state.last_generation is not None
        found.append(chat.state.last_generation.report().speedup)

    assert found == pytest.approx([1.5, 3.0])
    (measured,) = [line for line in chat.printed.splitlines() if "baseline" in line]
    assert "4 tokens" in measured
    assert len(fake.requests) == 2
    assert chat.texts == ["a", "one", "b", "two"]


def test_a_baseline_server_that_fails_costs_the_speedup_only(open_chat: Opener) -> None:
    chat, _ = open_chat(timed(2.0, "one", 4), timed(2.0, "two", 4), pages=LLAMA_PAGES, baseline=[as_json({}, 500)])

    assert chat.run("a", "b") == 0

    assert chat.texts == ["a", "one", "b", "two"]
    assert chat.state.last_generation is not None
    assert chat.state.last_generation.report().speedup is None


def test_a_baseline_server_needs_a_server(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specgen.cli.chat.run.is_terminal", lambda _: True)

    assert cli("chat", "--baseline-server", "http://127.0.0.1:1").code == 2
    assert cli("chat", "--server", "http://127.0.0.1:1", "--baseline-server", "http://127.0.0.1:1").code == 10


def test_cached_tokens_are_shown_where_the_server_tells(open_chat: Opener) -> None:
    chat, _ = open_chat(plain_answer("one"), plain_answer("two", 20, 11))

    chat.run("a", "b", "/stats", "/tokens")

    assert "11 of 20 cached" in chat.printed
    assert "reused 11 of 29 prompt tokens" in chat.printed
    assert "22 tokens" in chat.printed


def test_acceptance_of_a_reply_is_the_servers(open_chat: Opener) -> None:
    chat, _ = open_chat(recorded(LLAMA_STREAM), pages=LLAMA_PAGES)

    chat.run("a")

    assert "84 % of 19 accepted" in chat.printed  # 16 of 19, as the recorded stream counts


def test_a_reply_whose_server_tells_nothing_of_drafts_does_not_claim_that_nothing_was_drafted(
    open_chat: Opener,
) -> None:
    chat, _ = open_chat(plain_answer("one"))

    chat.run("a")

    assert "nothing drafted" not in chat.printed


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_shown_and_not_sent_again(open_chat: Opener, name: str) -> None:
    thought = {"choices": [{"index": 0, "delta": {name: "hm"}, "finish_reason": None}]}
    chat, fake = open_chat(as_events(thought, chunk("yes", "stop")), plain_answer("two"))

    chat.run("a", "b")

    assert "hm" in chat.replies
    assert chat.state.conversation.messages[1].thinking == "hm"
    assert roles_and_texts(fake.requests[1])[1] == ("assistant", "yes")


@pytest.mark.parametrize("command", ["/k", "/k 4", "/draft", "/draft lookup"])
def test_drafting_was_set_when_the_server_started(open_chat: Opener, command: str) -> None:
    chat, fake = open_chat(plain_answer("one"))

    chat.run(command)

    assert chat.is_reported("settings", command.split()[0], "--server")
    assert not fake.requests


def test_undo_and_retry_send_the_shorter_history(open_chat: Opener) -> None:
    chat, fake = open_chat(plain_answer("one"), plain_answer("two"), plain_answer("again"))

    chat.run("a", "b", "/retry temperature=0.8", "/undo")

    assert roles_and_texts(fake.requests[2]) == roles_and_texts(fake.requests[1])
    assert (fake.requests[1]["temperature"], fake.requests[2]["temperature"]) == (0, 0.8)
    assert chat.texts == ["a", "one"]


@pytest.mark.parametrize(
    "failure",
    [
        as_json({"error": {"message": "boom"}}, 500),
        Reply([b'data: {"choices": [{"delta": {"content": "par"}}]}\n\n'], is_cut=True),
    ],
    ids=["before the text", "in the text"],
)
def test_an_error_of_the_server_keeps_the_chat_alive(open_chat: Opener, failure: Reply) -> None:
    chat, fake = open_chat(plain_answer("one"), failure, plain_answer("three"))

    assert chat.run("a", "b", "c") == 0

    assert [error.exit_code for error in chat.errors] == [10]
    assert chat.texts[:2] == ["a", "one"]
    assert chat.texts[-2:] == ["c", "three"]
    assert (("assistant", "par") in roles_and_texts(fake.requests[2])) == failure.is_cut


def test_ctrl_c_keeps_what_came(open_chat: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, _ = open_chat(as_events(chunk("one"), chunk(" two"), chunk(" three", "stop")), plain_answer("next"))
    conversation = chat.state.conversation
    stream = conversation.stream

    def stopped(answer: Any) -> Iterator[Any]:
        for event in stream(answer):
            yield event
            if isinstance(event, ServedText) and event.text == "one":
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(conversation, "stream", stopped)
    chat.run("a", lambda: monkeypatch.setattr(conversation, "stream", stream), "b")

    assert chat.texts[0] == "a"
    assert chat.texts[1].startswith("one")
    assert "three" not in chat.texts[1]
    assert conversation.messages[1].interrupted
    assert chat.texts[2:] == ["b", "next"]


def test_a_saved_chat_names_the_server_and_leaves_models_to_the_command_line(open_chat: Opener, state: Path) -> None:
    chat, _ = open_chat(plain_answer("one"))

    chat.run("a")

    (path,) = sessions(state)
    transcript = saved(path)
    assert (transcript.drafter, transcript.target.name) == ("server", "any")
    own = ModelSettings("mine"), AUTO_DRAFT, ModelSettings("")
    assert resumed_models(frozenset(), transcript, *own) == own


def test_the_key_is_in_no_saved_chat_and_no_message(open_chat: Opener, state: Path) -> None:
    failure = as_json({"error": {"message": f"wrong key {KEY}"}}, 401)
    chat, fake = open_chat(plain_answer(), failure, key=KEY)

    chat.run("a", "b", "/stats")

    assert fake.headers[-1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in chat.printed + chat.replies
    assert not any(KEY.encode() in path.read_bytes() for path in state.rglob("*") if path.is_file())


def test_a_reply_is_never_asked_to_be_longer_than_the_window_leaves_room(open_chat: Opener) -> None:
    chat, fake = open_chat(plain_answer("one", 1970), plain_answer("two"), pages=VLLM_PAGES)  # a window of 2048

    chat.run("a", "b")

    assert 1970 + 2 + fake.requests[1]["max_tokens"] < 2048


@pytest.mark.parametrize("option", [("-d", "lookup"), ("--quant", "int8"), ("-k", "3"), ("--chat-template", "x")])
def test_options_of_loading_are_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch, option: tuple[str, str]) -> None:
    monkeypatch.setattr("specgen.cli.chat.run.is_terminal", lambda _: True)

    assert cli("chat", "--server", "http://127.0.0.1:1", *option).code == 2


def test_a_server_that_is_not_there_ends_with_exit_code_10(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specgen.cli.chat.run.is_terminal", lambda _: True)

    assert cli("chat", "--server", "http://127.0.0.1:1").code == 10


def test_torch_is_not_imported() -> None:
    code = "import sys, specgen.cli.chat.run, specgen.runtime.servers.conversation; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
