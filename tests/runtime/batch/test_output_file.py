"""The output of a batch: what is skipped, what a kill may tear, and what is never overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.batch import BatchAnswer, BatchRequest, BatchResult
from specgen.core.errors import OutputError, SettingsError, SpecgenError
from specgen.render.batch import result_line
from specgen.runtime.batch.output_file import OutputFile
from tests.render.runs import counts, warmed_up

ANSWER = BatchAnswer({"choices": [{"message": {"content": "ü\u2028\x1b"}}]}, 3, 0.1)


def line(name: str, answer: BatchAnswer | SpecgenError = ANSWER) -> str:
    return result_line(BatchResult(BatchRequest(name, []), answer))


def ids(path: Path) -> list[str]:
    return [json.loads(text)["custom_id"] for text in path.read_text().split("\n")[:-1]]


def test_ids_of_answers_and_errors_are_known_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with OutputFile(path) as output:
        assert output.done == {}
        output.append(line("a"))
        output.append(line("b", SettingsError("no")))

    with OutputFile(path) as output:
        assert output.done == {"a": True, "b": False}


def test_warm_up_is_in_the_time_of_an_answer_and_not_in_its_speed() -> None:
    made = warmed_up(counts((5, 2)))
    answer = BatchAnswer({}, made.num_emitted, made.decode_seconds, counts=made)

    figures = json.loads(line("a", answer))["response"]["body"]["specgen"]

    assert (figures["tokens"], figures["decode_s"], figures["warmup_s"]) == (5, pytest.approx(0.83), pytest.approx(0.8))
    assert figures["tokens_per_s"] == pytest.approx(100)


def test_lines_of_errors_are_removed_on_request(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text(line("a", SettingsError("no")) + "\n" + line("b") + "\n" + line("c", SettingsError("no"))[:20])

    with OutputFile(path, retries_failed=True) as output:
        assert output.done == {"b": True}
        output.append(line("a"))

    assert ids(path) == ["b", "a"]


@given(data=st.data())
def test_wherever_a_kill_tears_the_last_line_it_is_written_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "out"
    whole, last = (line(name).encode() for name in "ab")
    path.write_bytes(whole + b"\n" + last[: data.draw(st.integers(0, len(last)))])

    with OutputFile(path) as output:
        assert output.done == {"a": True}
        output.append(line("b"))

    assert ids(path) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    ["hello", "hello\n", "{}\n", '{"custom_id": "a", "body": {}}\n', '{"custom_id": "a"', "1\n", "\n\n", "\x00"],
)
def test_a_file_of_another_kind_is_refused_and_unchanged(tmp_path: Path, content: str) -> None:
    path = tmp_path / "out"
    path.write_text(content)

    with pytest.raises(SettingsError):
        OutputFile(path)

    assert path.read_text() == content


def test_two_runs_cant_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "out"

    with OutputFile(path), pytest.raises(OutputError):
        OutputFile(path)

    OutputFile(path).close()


@pytest.mark.parametrize("place", ["missing/out", ".", "/dev/null"])
def test_a_place_without_a_file_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises((OutputError, SettingsError)):
        OutputFile(tmp_path / place)


def test_a_line_has_the_shape_of_openais_batch_api() -> None:
    good, bad = json.loads(line("a")), json.loads(line("b", SettingsError("no")))

    assert (good["custom_id"], good["response"]["status_code"], good["error"]) == ("a", 200, None)
    assert good["response"]["body"]["specgen"]["tokens"] == 3
    assert (bad["response"], bad["error"]) == (None, {"code": "settings", "message": "no"})
