"""The prompt from argument, option, files and stdin: its order, its limits, and what is refused."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from specgen.cli import prompt_input
from specgen.cli.prompt_input import MAX_PROMPT_BYTES, _encoding, as_utf8, decode_text, read_capped, read_prompt
from specgen.core.errors import PromptError, SettingsError, SpecgenError

STDIN = Path("-")
Feeder = Callable[[bytes], None]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Feeder:
    """Returns a function that makes a pipe with these bytes stdin."""

    def feed(data: bytes) -> None:
        read_end, write_end = os.pipe()
        os.write(write_end, data)
        os.close(write_end)
        monkeypatch.setattr(sys, "stdin", os.fdopen(read_end, "r"))

    return feed


def assert_names(error: SpecgenError, *values: str) -> None:
    for value in values:
        assert value in error.message


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
    with pytest.raises(SettingsError, match="--prompt") as caught:
        read_prompt("one", "two", [], None)

    assert caught.value.exit_code == 2


def test_piped_text_precedes_the_argument(stdin: Feeder) -> None:
    stdin(b"a diff\n")

    assert read_prompt("explain", None, [], None) == "a diff\n\nexplain"


def test_files_precede_piped_text_and_that_precedes_the_option(stdin: Feeder, file: Path) -> None:
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


def test_a_dash_with_an_option_puts_piped_text_first(stdin: Feeder) -> None:
    stdin(b"piped")

    assert read_prompt("-", "explain", [], None) == "piped\n\nexplain"


def test_no_stdin_leaves_a_pipe_alone(stdin: Feeder) -> None:
    stdin(b"piped")

    assert read_prompt("why?", None, [], False) == "why?"
    assert sys.stdin.read() == "piped"


def test_a_terminal_is_read_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(slave, "r"))

    with pytest.raises(PromptError):
        read_prompt(None, None, [], None)

    os.close(master)


def test_the_stdin_option_reads_any_kind_of_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as null:
        monkeypatch.setattr(sys, "stdin", null)

        assert read_prompt("why?", None, [], True) == "why?"


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_prompt_is_refused(empty: str | None) -> None:
    with pytest.raises(PromptError):
        read_prompt(empty, None, [], False)


def test_an_empty_pipe_is_refused(stdin: Feeder) -> None:
    stdin(b"\n")

    with pytest.raises(PromptError):
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
def test_bytes_that_are_not_utf8_are_reported_with_their_offset(stdin: Feeder, tmp_path: Path) -> None:
    stdin(b"ab\xffcd")

    with pytest.raises(PromptError) as caught:
        read_prompt(None, None, [], None)

    assert_names(caught.value, "stdin", "0xff", "offset 2")
    assert "LATIN1" not in (caught.value.hint or ""), "it makes control characters of any bytes"
    assert caught.value.exit_code == 2


@pytest.mark.fault("F05")
def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("é".encode("latin-1"))

    with pytest.raises(PromptError, match="0xe9") as caught:
        read_prompt(None, None, [tmp_path / "latin1.txt"], None)

    assert_names(caught.value, "latin1.txt", "offset 0")


def test_text_of_the_command_line_that_is_not_utf8_is_reported() -> None:
    word = os.fsdecode(b"ab\xff")

    with pytest.raises(PromptError, match="0xff") as caught:
        read_prompt(word, None, [], None)

    assert_names(caught.value, "the prompt", "offset 2")


@given(st.text())
@pytest.mark.fault("F06")
def test_any_text_is_read_unchanged(text: str) -> None:
    assume(_encoding(text.encode()) == "utf-8-sig")  # F122: text with a NUL after each character
    assert as_utf8(text, "it") == text
    assert decode_text(text.encode(), "it") == text.removeprefix("\ufeff")


@given(st.binary())
@pytest.mark.fault("F06")
def test_any_bytes_are_text_or_a_prompt_error(data: bytes) -> None:
    assume(_encoding(data) == "utf-8-sig")
    body = data.removeprefix(b"\xef\xbb\xbf")
    if body.decode(errors="replace").encode() == body:
        assert decode_text(data, "it").encode() == body
    else:
        with pytest.raises(PromptError, match=r"offset|it is an? "):  # F168: a file of another kind is named
            decode_text(data, "it")


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_an_unreadable_file_is_a_prompt_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(PromptError, match=re.escape(str(tmp_path / name))):
        read_prompt("why?", None, [tmp_path / name], None)


# F07


class Endless(io.RawIOBase):
    """A stream without an end; counts the bytes that were read."""

    num_read = 0

    def read(self, size: int = -1) -> bytes:
        self.num_read += size
        return b"y" * size


@pytest.mark.fault("F07")
def test_reading_ends_at_the_cap() -> None:
    stream = Endless()

    with pytest.raises(PromptError, match="16 MiB"):
        read_capped(stream, "it")

    assert MAX_PROMPT_BYTES < stream.num_read <= MAX_PROMPT_BYTES + (1 << 16)


def test_a_prompt_of_exactly_the_cap_is_read() -> None:
    assert len(read_capped(io.BytesIO(b"y" * MAX_PROMPT_BYTES), "it")) == MAX_PROMPT_BYTES


# F59


def test_waiting_for_stdin_is_reported_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    prompt_input._print_waiting_notice()

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--no-stdin" in captured.err


def test_with_stderr_closed_nothing_is_written_to_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)

    prompt_input._print_waiting_notice()

    assert capsys.readouterr().out == ""


@pytest.mark.fault("F122")
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf16_is_read_by_its_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("\ufeffSay hi — 日本 🙂.\r\n".encode(encoding))

    assert read_prompt(None, None, [path], None) == "Say hi — 日本 🙂."


@pytest.mark.fault("F122")
@pytest.mark.parametrize(("encoding", "name"), [("utf-16-le", "UTF16LE"), ("utf-16-be", "UTF16BE")])
def test_utf16_without_a_mark_is_named(encoding: str, name: str) -> None:
    with pytest.raises(PromptError, match="UTF-16") as caught:
        decode_text("Say hi.\r\n".encode(encoding), "file")

    assert name in (caught.value.hint or "")


@pytest.mark.fault("F122", "F168")
@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"PK\x03\x04\x14\xff", "zip"),
        (b"GGUF\x03\0\0\0\xff", "GGUF"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "PDF"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"\xff\xd8\xff\xe0", "image"),
        (b"PAR1\x15\x04\xff", "Parquet"),
    ],
)
def test_a_file_that_is_no_text_is_called_what_it_is(data: bytes, part: str) -> None:
    with pytest.raises(PromptError, match=part) as caught:
        decode_text(data, "file")

    assert "iconv" not in (caught.value.hint or "")


def test_half_a_utf16_character_is_reported() -> None:
    with pytest.raises(PromptError, match="UTF-16"):
        decode_text(b"\xff\xfea\0b", "file")


@pytest.mark.fault("F06")
def test_some_nul_characters_are_no_utf16() -> None:
    assert decode_text(b"a\0b\0c d e f g\n", "file") == "a\0b\0c d e f g\n"
    assert decode_text(b"\0" * 8, "file") == "\0" * 8
