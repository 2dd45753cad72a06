"""Pipes, full disks, closed streams, encodings: the real command line in processes of its own."""

from __future__ import annotations

import json

import pytest

from tests.cli.children import run_child, shell
from tests.cli.scripted_child import answer

ANSWER = answer(3)
FULL = "error: cannot write the answer: No space left on device\n"


def test_a_pipe_gets_the_bytes_of_the_answer_and_stderr_the_figures() -> None:
    ended = run_child("generate", "hi")

    assert ended.code == 0
    assert ended.out == ANSWER.encode()
    assert "TAR      50.0 %" in ended.err
    assert "\x1b" not in ended.err


# F56


@pytest.mark.parametrize("form", ["", "--format ndjson", "--color always", "--view text --color never"])
def test_a_reader_that_leaves_early_is_no_error(form: str) -> None:
    ended = shell(f"specgen generate hi --no-stats {form} | head -c 5", SPECGEN_TEST_ROUNDS="50000")

    assert (ended.code, ended.err) == (0, "")
    assert len(ended.out) == 5


def test_a_reader_that_leaves_early_gets_no_figures_either() -> None:
    ended = shell("specgen generate hi | head -c 5", SPECGEN_TEST_ROUNDS="50000")

    assert (ended.code, ended.err) == (0, "")


# F57


@pytest.mark.parametrize("form", ["", "--json", "--format ndjson", "--view inline"])
def test_a_full_disk_is_one_error_line_and_exit_7(form: str) -> None:
    ended = shell(f"specgen generate hi --no-stats {form} >/dev/full")

    assert (ended.code, ended.err) == (7, FULL)


# F58


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_closed_stdout_is_told_before_anything_is_loaded(form: str) -> None:
    ended = shell(f"specgen generate hi {form} >&-")

    assert ended.code == 7
    assert ended.err.splitlines()[0] == "error: cannot write the answer: stdout is closed"


# F59


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>/dev/null"])
def test_a_stderr_that_takes_nothing_changes_nothing_about_the_answer(redirection: str) -> None:
    ended = shell(f"specgen generate hi {redirection}")

    assert (ended.code, ended.out) == (0, ANSWER.encode())


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_a_stderr_that_takes_nothing_changes_nothing_about_an_error(redirection: str) -> None:
    ended = shell(f"specgen generate --bogus {redirection}")

    assert (ended.code, ended.out) == (2, b"")


# F61


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ascii", "C", "no utf-8 mode"],
)
@pytest.mark.parametrize("form", [[], ["--color", "always"]])
def test_no_encoding_of_the_environment_changes_the_answer(env: dict[str, str], form: list[str]) -> None:
    ended = run_child("generate", "hi", *form, env=env)

    assert ended.code == 0
    assert "word2" in ended.out.decode()
    assert ended.out.decode().count("日") == 3


def test_an_ascii_stderr_gets_ascii_figures() -> None:
    ended = run_child("generate", "hi", env={"PYTHONIOENCODING": "ascii"})

    assert ended.err.isascii()
    assert "a 50.0 %" in ended.err


def test_json_is_utf8_whatever_the_environment_says() -> None:
    ended = run_child("generate", "hi", "--json", env={"PYTHONIOENCODING": "latin-1"})

    assert json.loads(ended.out)["text"] == ANSWER


def test_unbuffered_output_is_the_same() -> None:
    ended = run_child("generate", "hi", env={"PYTHONUNBUFFERED": "1"})

    assert ended.out == ANSWER.encode()


# F07, F08


def test_an_endless_stdin_ends_at_the_cap() -> None:
    ended = shell("yes | specgen generate summarize")

    assert ended.code == 2
    assert ended.err.splitlines()[0] == "error: stdin holds more than 16 MiB"


@pytest.mark.parametrize("redirection", ["</dev/null", "<&-"])
def test_no_prompt_at_all_is_an_error_not_a_wait(redirection: str) -> None:
    ended = shell(f"specgen generate {redirection}")

    assert ended.code == 2
    assert ended.err.splitlines()[0] == "error: there is no prompt"


def test_a_closed_stdin_is_no_hindrance_where_the_prompt_is_given() -> None:
    assert shell("specgen generate hi <&-").out == ANSWER.encode()


def test_stdin_asked_for_and_closed_is_an_error() -> None:
    ended = shell("specgen generate - <&-")

    assert (ended.code, ended.err.splitlines()[0]) == (2, "error: stdin is closed, so no prompt can be read from it")


# F05


@pytest.mark.parametrize("option", ["", "--system"])
def test_bytes_on_the_command_line_that_are_no_text_are_told_with_their_place(option: str) -> None:
    ended = shell(f"specgen generate {option} $'a\\xff' x" if option else "specgen generate $'a\\xff'")

    assert ended.code == 2
    assert "is not UTF-8: byte 0xff at offset 1" in ended.err


# Help and version


def test_the_version_is_one_line() -> None:
    from specgen import __version__

    ended = run_child("--version", module="specgen")

    assert (ended.code, ended.out.decode(), ended.err) == (0, f"specgen {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "-h"]])
def test_help_loads_no_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; from specgen.cli.app import run; code = run({arguments!r}); "
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules], code)"
    )

    ended = shell(f'"$PYTHON" -c "{code}"', PYTHON=__import__("sys").executable)

    assert ended.out.decode().splitlines()[-1] == "[] 0"
    assert ended.err == ""


def test_no_words_at_all_shows_the_help_and_no_empty_error() -> None:
    ended = run_child(module="specgen")

    assert ended.code == 2
    assert b"generate" in ended.out
    assert "error:" not in ended.err
