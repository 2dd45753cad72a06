from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.errors import OutputError
from specgen.core.events import TextEvent
from specgen.render.sanitize import sanitize
from specgen.render.views import PlainView
from tests.render.screens import EXAMPLE, TARGET, answer, final, generations, round_text, show_all


class CountingBytes(io.BytesIO):
    num_flushes = 0

    def flush(self) -> None:
        self.num_flushes += 1


class Stingy(io.RawIOBase):
    """Writes three bytes at a time, as a raw file may."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        self.taken += bytes(data)[:3]  # type: ignore[call-overload]
        return min(3, len(data))  # type: ignore[arg-type]


class Failing(io.BytesIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error
        self.num_tries = 0

    def flush(self) -> None:
        self.num_tries += 1
        raise self.error


@given(generations(st.text(max_size=8)))
def test_bytes_are_the_answer_and_a_final_newline(events: list[TextEvent]) -> None:
    stream = io.BytesIO()

    show_all(PlainView(stream), events)

    text = answer(events)
    assert stream.getvalue().decode() == (text if not text or text.endswith("\n") else text + "\n")


def test_control_characters_are_unchanged_in_a_pipe() -> None:
    stream = io.BytesIO()
    text = "".join(map(chr, range(256))) + "\u202e\ufeff\r\n"

    show_all(PlainView(stream), [round_text((text, TARGET))])

    assert stream.getvalue() == text.encode()


def test_sanitizing_is_possible() -> None:
    stream = io.BytesIO()

    show_all(PlainView(stream, sanitize), [round_text(("\x1b]0;x\x07", TARGET))])

    assert stream.getvalue() == "␛]0;x␇\n".encode()


def test_each_round_is_flushed() -> None:
    stream = CountingBytes()
    view = PlainView(stream)

    view.show(EXAMPLE)
    assert (stream.getvalue(), stream.num_flushes) == (b" The quick fox", 1)

    view.show(EXAMPLE)
    assert stream.num_flushes == 2


def test_closing_twice_adds_one_newline_and_nothing_without_an_answer() -> None:
    stream = io.BytesIO()
    empty = io.BytesIO()
    view = PlainView(stream)

    view.show(final("a"))
    view.close()
    view.close()
    PlainView(empty).close()

    assert stream.getvalue() == b"a\n"
    assert empty.getvalue() == b""


def test_a_stream_that_writes_partially_gets_everything() -> None:
    stream = Stingy()

    show_all(PlainView(stream), [EXAMPLE])  # type: ignore[arg-type]

    assert stream.taken == b" The quick fox\n"


def test_a_broken_pipe_reaches_the_caller_and_closing_stays_silent() -> None:
    stream = Failing(BrokenPipeError(32, "Broken pipe"))
    view = PlainView(stream)

    with pytest.raises(BrokenPipeError):
        view.show(EXAMPLE)
    view.close()

    assert stream.num_tries == 1


def test_another_failure_is_an_output_error() -> None:
    view = PlainView(Failing(OSError(28, "No space left on device")))

    with pytest.raises(OutputError, match="No space left on device"):
        view.show(EXAMPLE)


def test_a_lone_surrogate_does_not_crash() -> None:
    stream = io.BytesIO()

    show_all(PlainView(stream), [round_text(("a\ud800b", TARGET))])

    assert stream.getvalue() == b"a?b\n"
