"""Chat templates are untrusted code: their time, memory and output size are limited, and the program continues."""

from __future__ import annotations

import resource
import signal
import threading
from time import process_time

import pytest

from specgen.core.errors import LoadError
from specgen.text import template_sandbox
from specgen.text.chat_template import ChatTemplate, Message
from tests.toys import toy_tokenizer

HELLO = [Message("user", "Hello")]


@pytest.mark.fault("F34")
def test_an_endless_template_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_SECONDS", 0.2)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    started = process_time()

    with pytest.raises(LoadError, match=r"0\.2 s"):
        ChatTemplate(endless).encode(toy_tokenizer(), HELLO)

    assert process_time() - started < 2
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


@pytest.mark.fault("F34")
def test_a_template_that_allocates_too_much_memory_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_EXTRA_BYTES", 64 * 2**20)
    before = resource.getrlimit(resource.RLIMIT_AS)

    with pytest.raises(LoadError):
        ChatTemplate("{{ 'a' * 10 ** 10 }}").encode(toy_tokenizer(), HELLO)

    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert ChatTemplate().encode(toy_tokenizer(), HELLO)


@pytest.mark.fault("F34")
def test_a_template_that_renders_far_more_text_than_its_messages_is_refused() -> None:
    with pytest.raises(LoadError, match="2000000"):
        ChatTemplate("{{ 'a' * 2000000 }}").encode(toy_tokenizer(), HELLO)


def test_a_long_conversation_is_not_refused() -> None:
    assert len(ChatTemplate().encode(toy_tokenizer(), [Message("user", "fox " * 300_000)])) > 300_000


def test_in_another_thread_a_template_is_rendered_without_a_time_limit() -> None:
    results: list[list[int]] = []
    thread = threading.Thread(target=lambda: results.append(ChatTemplate().encode(toy_tokenizer(), HELLO)))
    thread.start()
    thread.join()

    assert results == [ChatTemplate().encode(toy_tokenizer(), HELLO)]
