"""Where the prompt comes from: argument, option, files and stdin, in which order, and what is refused."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.cli import prompt_input
from specgen.cli.prompt_input import MAX_PROMPT_BYTES, as_utf8, decode, read_capped, read_prompt
from specgen.core.errors import PromptError, SettingsError

STDIN = Path("-")
Feeder = Callable[[bytes], None]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Feeder:
    """Puts bytes into a pipe that is stdin."""

    def feed(data: bytes) -> None:
        read_end, write_end = os.pipe()
        os.write(write_end, data)
        os.close(write_end)
        monkeypatch.setattr(sys, "stdin", os.fdopen(read_end, "r"))

    return feed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(b"from the file\n")
    return path


def test_the_argument_is_the_prompt() -> None:
    assert read_prompt("why?", None, [], None) == "why?"


def test_the_option_is_the_prompt() -> None:
    assert read_prompt(None, "why?", [], None) == "why?"


@pytest.mark.fault("F13")
def test_two_prompts_are_refused() -> None:
    with pytest.raises(SettingsError, match="given twice") as caught:
        read_prompt("one", "two", [], None)

    assert caught.value.exit_code == 2


def test_piped_text_goes_before_the_words(stdin: Feeder) -> None:
    stdin(b"a diff\n")

    assert read_prompt("explain", None, [], None) == "a diff\n\nexplain"


def test_files_go_before_piped_text_and_that_before_the_words(stdin: Feeder, file: Path) -> None:
    stdin(b"from the pipe\n")

    assert read_prompt(None, "explain", [file, file], None) == "\n\n".join(
        ["from the file", "from the file", "from the pipe", "explain"]
    )


def test_piped_text_alone_is_the_prompt(stdin: Feeder) -> None:
    stdin(b"\nwhy?\r\n")

    assert read_prompt(None, None, [], None) == "why?"


@pytest.mark.parametrize(("argument", "option", "files"), [("-", None, []), (None, "-", []), (None, None, [STDIN])])
def test_a_dash_is_stdin(stdin: Feeder, argument: str | None, option: str | None, files: list[Path]) -> None:
    stdin(b"piped")

    assert read_prompt(argument, option, files, None) == "piped"


def test_a_dash_beside_an_option_is_piped_text_before_it(stdin: Feeder) -> None:
    stdin(b"piped")

    assert read_prompt("-", "explain", [], None) == "piped\n\nexplain"


def test_no_stdin_leaves_a_pipe_alone(stdin: Feeder) -> None:
    stdin(b"piped")

    assert read_prompt("why?", None, [], False) == "why?"
    assert sys.stdin.read() == "piped"


def test_a_terminal_is_not_read_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(slave, "r"))

    with pytest.raises(PromptError, match="there is no prompt"):
        read_prompt(None, None, [], None)

    os.close(master)


def test_stdin_asked_for_is_read_whatever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as null:
        monkeypatch.setattr(sys, "stdin", null)

        assert read_prompt("why?", None, [], True) == "why?"


@pytest.mark.parametrize("empty", ["", None])
def test_nothing_is_no_prompt(empty: str | None) -> None:
    with pytest.raises(PromptError, match="there is no prompt"):
        read_prompt(empty, None, [], False)


def test_an_empty_pipe_is_no_prompt(stdin: Feeder) -> None:
    stdin(b"\n")

    with pytest.raises(PromptError, match="there is no prompt"):
        read_prompt(None, None, [], None)


def test_a_raw_completion_keeps_every_character_of_a_file(file: Path) -> None:
    assert read_prompt(None, None, [file], None, is_chat=False) == "from the file\n"


def test_lines_inside_a_text_stay_as_they_are(stdin: Feeder) -> None:
    stdin(b"a\r\n\tb\0c \n\n d\r\n")

    assert read_prompt(None, None, [], None) == "a\r\n\tb\0c \n\n d"


def test_a_byte_order_mark_is_dropped(stdin: Feeder, tmp_path: Path) -> None:
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfin a file")
    stdin(b"\xef\xbb\xbfpiped")

    assert read_prompt(None, None, [tmp_path / "bom"], None) == "in a file\n\npiped"


# F05


@pytest.mark.fault("F05")
def test_bytes_that_are_no_utf8_are_told_with_their_place(stdin: Feeder, tmp_path: Path) -> None:
    stdin(b"ab\xffcd")

    with pytest.raises(PromptError) as caught:
        read_prompt(None, None, [], None)

    assert caught.value.message == "stdin is not UTF-8: byte 0xff at offset 2"
    assert caught.value.exit_code == 2


@pytest.mark.fault("F05")
def test_a_file_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))

    with pytest.raises(PromptError, match=r"latin1\.txt is not UTF-8: byte 0xe9 at offset 0"):
        read_prompt(None, None, [tmp_path / "latin1.txt"], None)


def test_words_of_the_command_line_that_are_no_utf8_are_told() -> None:
    word = os.fsdecode(b"ab\xff")

    with pytest.raises(PromptError, match="the prompt is not UTF-8: byte 0xff at offset 2"):
        read_prompt(word, None, [], None)


@given(st.text())
@pytest.mark.fault("F06")
def test_any_text_survives_the_way_in(text: str) -> None:
    assert as_utf8(text, "it") == text
    assert decode(text.encode(), "it") == text.removeprefix("\ufeff")


@given(st.binary())
@pytest.mark.fault("F06")
def test_any_bytes_are_text_or_a_prompt_error(data: bytes) -> None:
    body = data.removeprefix(b"\xef\xbb\xbf")
    if body.decode(errors="replace").encode() == body:
        assert decode(data, "it").encode() == body
    else:
        with pytest.raises(PromptError, match="offset"):
            decode(data, "it")


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_file_that_can_not_be_read_is_a_prompt_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(PromptError, match="can't read the prompt file"):
        read_prompt("why?", None, [tmp_path / name], None)


# F07


class Endless(io.RawIOBase):
    """Gives bytes for ever; counts them."""

    num_given = 0

    def read(self, size: int = -1) -> bytes:
        self.num_given += size
        return b"y" * size


@pytest.mark.fault("F07")
def test_reading_ends_at_the_cap() -> None:
    stream = Endless()

    with pytest.raises(PromptError, match="it holds more than 16 MiB"):
        read_capped(stream, "it")

    assert MAX_PROMPT_BYTES < stream.num_given <= MAX_PROMPT_BYTES + (1 << 16)


def test_a_prompt_of_exactly_the_cap_is_read() -> None:
    assert len(read_capped(io.BytesIO(b"y" * MAX_PROMPT_BYTES), "it")) == MAX_PROMPT_BYTES


# F59


def test_waiting_for_stdin_is_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    prompt_input._say_waiting()

    assert capsys.readouterr() == ("", "reading the prompt from stdin (--no-stdin ignores it)...\n")


def test_with_stderr_closed_the_wait_is_not_told_on_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)

    prompt_input._say_waiting()

    assert capsys.readouterr().out == ""
