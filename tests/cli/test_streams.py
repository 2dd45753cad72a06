"""The command line with pipes, full disks, closed streams and other encodings, in its own processes."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import pexpect
import pytest

from specgen.cli.app import run
from tests.cli.children import ROOT, SCRIPTED, TIMEOUT_SECONDS, run_child, shell
from tests.cli.scripted_child import answer
from tests.processes.environment import environment
from tests.processes.forked import ForkedProcess

ANSWER = answer(3)
FULL = "No space left on device"


def test_a_pipe_gets_the_bytes_of_the_answer_and_stderr_the_statistics() -> None:
    ended = run_child("generate", "hi")

    assert ended.code == 0
    assert ended.out == ANSWER.encode()
    assert "50.0 %" in ended.err
    assert "\x1b" not in ended.err


# F56


PIPE_BYTES = 1 << 16


@pytest.mark.parametrize("form", ["", "--format ndjson", "--color always", "--view text --color never"])
@pytest.mark.fault("F56")
def test_a_reader_that_closes_the_pipe_ends_the_work_without_an_error(form: str, tmp_path: Path) -> None:
    ended = shell(
        f"specgen generate hi --no-stats {form} | head -c 5",
        SPECGEN_TEST_ROUNDS="50000",
        SPECGEN_TEST_COUNT=str(tmp_path / "made"),
    )

    assert (ended.code, ended.err) == (0, "")
    assert len(ended.out) == 5
    # After the content of the pipe comes the one round whose text could not be written.
    assert int((tmp_path / "made").read_text()) <= (PIPE_BYTES + 5) // len(answer(1).encode()) + 2


def test_a_reader_that_closes_the_pipe_gets_no_statistics() -> None:
    ended = shell("specgen generate hi | head -c 5", SPECGEN_TEST_ROUNDS="50000")

    assert (ended.code, ended.err) == (0, "")


@pytest.mark.parametrize("place", ["/tmp", "/no/folder/answer.txt"])
def test_a_file_that_can_t_be_written_is_reported_after_the_reader_closed_the_pipe(place: str) -> None:
    ended = shell(f"specgen generate hi --no-stats -o {place} | head -c 5", SPECGEN_TEST_ROUNDS="50000")

    assert ended.code == 7
    assert place.rpartition("/")[0] in ended.err


# F57


@pytest.mark.parametrize("form", ["", "--json", "--format ndjson", "--view inline"])
@pytest.mark.fault("F57")
def test_a_full_disk_is_one_error_line_and_exit_code_7(form: str) -> None:
    ended = shell(f"specgen generate hi --no-stats {form} >/dev/full")

    assert (ended.code, ended.err.count("\n")) == (7, 1)
    assert FULL in ended.err


def test_the_summary_of_a_run_with_a_full_disk_names_an_error() -> None:
    ended = shell("specgen generate hi >/dev/full")

    assert ended.code == 7
    assert re.search(r"^ended .*error", ended.err, re.MULTILINE)
    assert "interrupted" not in ended.err


@pytest.mark.parametrize("words", ["--help", "--version", "generate --help", "chat --help"])
@pytest.mark.fault("F57")
def test_help_and_version_report_a_full_disk(words: str) -> None:
    ended = shell(f"specgen {words} >/dev/full")

    assert (ended.code, ended.err.count("\n")) == (7, 1)
    assert FULL in ended.err


@pytest.mark.parametrize("words", ["--help", "--version", "generate --help"])
@pytest.mark.fault("F56")
def test_a_reader_of_the_help_may_close_the_pipe(words: str) -> None:
    ended = shell(f"specgen {words} | true")

    assert (ended.code, ended.err) == (0, "")


# F58


@pytest.mark.parametrize("form", ["", "--json"])
@pytest.mark.fault("F58")
def test_a_closed_stdout_is_reported_before_loading(form: str) -> None:
    ended = shell(f"specgen generate hi {form} >&-")

    assert ended.code == 7
    assert "stdout" in ended.err.splitlines()[0]


@pytest.mark.parametrize("words", ["doctor", "doctor --json", "verify", "bench"])
def test_a_closed_stdout_ends_every_command_before_its_work(words: str) -> None:
    ended = shell(f"specgen {words} >&-")

    assert ended.code == 7
    assert "stdout" in ended.err.splitlines()[0]


def test_a_chat_without_stdout_ends_before_loading() -> None:
    child = pexpect.spawn(
        "bash",
        ["-c", f'"{sys.executable}" -m specgen chat -t /no/model >&-; echo "ended with $?"'],
        env=environment(),
        encoding="utf-8",
        timeout=TIMEOUT_SECONDS,
        cwd=str(ROOT),
    )
    child.expect("stdout")
    child.expect("ended with 7")
    child.close()


# F59


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>/dev/null"])
@pytest.mark.fault("F59")
def test_a_closed_or_full_stderr_does_not_change_the_answer(redirection: str) -> None:
    ended = shell(f"specgen generate hi {redirection}")

    assert (ended.code, ended.out) == (0, ANSWER.encode())


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
@pytest.mark.fault("F59")
def test_a_closed_or_full_stderr_does_not_change_an_exit_code(redirection: str) -> None:
    ended = shell(f"specgen generate --bogus {redirection}")

    assert (ended.code, ended.out) == (2, b"")


# F60


@pytest.mark.fault("F60")
def test_a_slow_reader_slows_the_run_and_memory_stays_flat() -> None:
    descriptor, stdout = os.pipe()
    streams = {1: stdout, 2: 2}
    child = ForkedProcess(
        SCRIPTED, ["generate", "hi", "--no-stats"], environment(SPECGEN_TEST_ROUNDS="200000"), streams
    )
    os.close(stdout)
    num_read, sizes, leads = 0, [], []
    for _ in range(60):
        num_read += len(os.read(descriptor, 1024))
        _wait_until_asleep(child.pid)
        sizes.append(_figure(child.pid, "status", "VmRSS"))
        leads.append(_figure(child.pid, "io", "wchar") - num_read)
    os.close(descriptor)

    assert child.wait() == 0
    assert max(sizes[5:]) - sizes[5] < 1024
    # The run is ahead of the reader by the size of a pipe at most; the rest was never generated.
    assert max(leads) <= PIPE_BYTES + 4096


def _wait_until_asleep(pid: int) -> None:
    """Waits until the process has filled the pipe and sleeps in its write."""
    for _ in range(2000):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S":
            return
        time.sleep(0.001)


def _figure(pid: int, file: str, name: str) -> int:
    return int(Path(f"/proc/{pid}/{file}").read_text().partition(f"{name}:")[2].split()[0])


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
@pytest.mark.fault("F61")
def test_no_encoding_of_the_environment_changes_the_answer(env: dict[str, str], form: list[str]) -> None:
    # The fork server opens the streams as an interpreter does; once, a real one does.
    ended = run_child("generate", "hi", *form, env=env, fresh=not form and "PYTHONUTF8" in env)

    assert ended.code == 0
    assert "word2" in ended.out.decode()
    assert ended.out.decode().count("日") == 3


def test_an_ascii_stderr_gets_ascii_statistics() -> None:
    ended = run_child("generate", "hi", env={"PYTHONIOENCODING": "ascii"})

    assert ended.err.isascii()
    assert "a 50.0 %" in ended.err


def test_json_is_utf8_in_any_environment() -> None:
    ended = run_child("generate", "hi", "--json", env={"PYTHONIOENCODING": "latin-1"})

    assert json.loads(ended.out)["text"] == ANSWER


def test_unbuffered_output_is_the_same() -> None:
    ended = run_child("generate", "hi", env={"PYTHONUNBUFFERED": "1"})

    assert ended.out == ANSWER.encode()


def test_doctor_shows_a_path_outside_the_encoding_of_stdout(tmp_path: Path) -> None:
    cache = tmp_path / "キャッシュ"

    ended = run_child("doctor", module="specgen", env={"PYTHONIOENCODING": "ascii", "SPECGEN_CACHE": str(cache)})

    assert ended.code == 0, ended.err
    assert "キャッシュ" in ended.out.decode()
    # The report names the encoding that the terminal has.
    assert "ascii" in ended.out.decode()


# F174


@pytest.mark.fault("F174")
def test_streams_that_do_not_block_lose_nothing() -> None:
    (childs_in, prompt), (output, childs_out) = os.pipe(), os.pipe()
    childs = {0: childs_in, 1: childs_out, 2: os.open(os.devnull, os.O_WRONLY)}
    for descriptor in (childs_in, childs_out):
        os.set_blocking(descriptor, False)
    process = ForkedProcess(SCRIPTED, ["generate", "-"], environment(SPECGEN_TEST_ROUNDS="9000"), childs)
    for descriptor in childs.values():
        os.close(descriptor)
    time.sleep(0.5)
    os.write(prompt, b"hi")
    os.close(prompt)
    time.sleep(0.5)
    with os.fdopen(output, "rb") as reader:
        text = reader.read()

    assert process.wait(TIMEOUT_SECONDS) == 0
    assert text == answer(9000).encode()
    assert len(text) > PIPE_BYTES


# F07, F08


@pytest.mark.fault("F07")
def test_an_endless_stdin_is_refused_at_the_limit() -> None:
    ended = shell("yes | specgen generate summarize")

    assert ended.code == 2
    assert "16 MiB" in ended.err.splitlines()[0]


@pytest.mark.parametrize("redirection", ["</dev/null", "<&-"])
@pytest.mark.fault("F08")
def test_without_a_prompt_the_program_exits_and_does_not_wait(redirection: str) -> None:
    ended = shell(f"specgen generate {redirection}")

    assert ended.code == 2
    assert "prompt" in ended.err.splitlines()[0]


def test_a_closed_stdin_is_not_needed_if_the_prompt_is_given() -> None:
    assert shell("specgen generate hi <&-").out == ANSWER.encode()


@pytest.mark.fault("F08")
def test_a_closed_stdin_that_is_requested_is_an_error() -> None:
    ended = shell("specgen generate - <&-")

    assert ended.code == 2
    assert "stdin" in ended.err.splitlines()[0]


@pytest.mark.fault("F167")
def test_a_removed_working_folder_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()

    code = run(["generate", "hi"])

    assert (code, "working folder" in capsys.readouterr().err) == (2, True)


# F05


@pytest.mark.parametrize("option", ["", "--system"])
@pytest.mark.fault("F05")
def test_bytes_on_the_command_line_that_are_not_utf8_are_reported_with_their_offset(option: str) -> None:
    ended = shell(f"specgen generate {option} $'a\\xff' x" if option else "specgen generate $'a\\xff'")

    assert ended.code == 2
    assert "0xff" in ended.err
    assert "offset 1" in ended.err


# Help and version


def test_the_version_is_one_line() -> None:
    from specgen import __version__

    ended = run_child("--version", module="specgen", fresh=True)

    assert (ended.code, ended.err) == (0, "")
    assert re.fullmatch(rf"specgen {re.escape(__version__)}( \([0-9a-f]{{12}}\))?\n", ended.out.decode())


def test_without_arguments_the_help_is_shown_and_no_empty_error() -> None:
    ended = run_child(module="specgen")

    assert ended.code == 2
    assert b"generate" in ended.out
    assert "error:" not in ended.err
