"""The library: `specgen.load`, then generate, stream and chat; and the README's example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import specgen
from specgen.core.errors import ModelNotFoundError
from specgen.core.events import FinalText, Prefill, RoundText
from specgen.core.results import RunReport
from specgen.core.settings import SamplingSettings
from specgen.runtime.library import LoadKeywords, Models
from tests.structure import PACKAGE
from tests.toys import ANSWER

EXACT: LoadKeywords = {"quant": "none", "draft_quant": "none", "dtype": "float32", "device": "cpu"}
README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def models(talker: Path) -> Models:
    return specgen.load(str(talker), draft="lookup", **EXACT)


def test_generate_returns_the_whole_answer_and_its_speedup(models: Models) -> None:
    report = models.generate("hello", max_new_tokens=64)

    assert report.text == ANSWER
    assert report.finish_reason == "stop"
    assert report.speedup is not None


def test_streamed_texts_join_to_the_answer(models: Models) -> None:
    events = list(models.stream("hello", max_new_tokens=64))

    assert isinstance(events[0], Prefill)
    assert isinstance(events[-1], FinalText)
    assert "".join(event.kept for event in events if isinstance(event, RoundText)) + events[-1].text == ANSWER


def test_the_baseline_can_be_left_out(models: Models) -> None:
    assert models.generate("hello", baseline="off").speedup is None


def test_the_same_seed_gives_the_same_sampled_text(models: Models) -> None:
    sampling = SamplingSettings(temperature=3.0, seed=5, same_text=True)

    first, second = (models.generate("hello", sampling=sampling, max_new_tokens=9).text for _ in range(2))

    assert first == second


def test_a_chat_keeps_its_messages_and_reuses_the_cache(models: Models) -> None:
    chat = models.chat(max_new_tokens=64)

    first, second = chat.send("hello"), chat.send("again")

    assert (first.text, second.text) == (ANSWER, ANSWER)
    assert [message.role for message in chat.messages] == ["user", "assistant", "user", "assistant"]
    assert second.counts.num_reused_tokens > 0


def test_a_draft_model_changes_nothing_but_the_counts(talker: Path, models: Models) -> None:
    drafted = specgen.load(str(talker), draft=f"{talker}+lookup", **EXACT).generate("hello", num_draft_tokens=4)

    assert drafted.text == models.generate("hello").text
    assert drafted.counts.num_accepted > 0


@pytest.mark.parametrize("num_nodes", [3, "auto"])
def test_trees_change_nothing_but_the_counts(talker: Path, models: Models, num_nodes: int | str) -> None:
    loaded = specgen.load(str(talker), draft=str(talker), **EXACT)
    options = {"num_draft_tokens": 2, "num_tree_nodes": num_nodes}

    assert loaded.generate("hello", **options).text == models.generate("hello").text
    # Whether trees by cost are drafted at all depends on the times of passes.
    num_tree_rounds = loaded.generate("hello", **options).counts.num_tree_rounds
    assert num_tree_rounds > 0 or num_nodes == "auto"
    assert list(loaded.chat(**options).stream("hello"))


def test_a_missing_model_is_an_error_of_the_one_tree() -> None:
    with pytest.raises(ModelNotFoundError):
        specgen.load("/no/such/model", offline=True)


def test_the_example_of_the_readme_runs(talker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    names = re.findall(r'"Qwen/[^"]*"', example)
    assert len(names) == 2
    local = example.replace(names[0], repr(str(talker))).replace(names[1], repr(f"{talker}+lookup"))

    exec(compile(local, "README.md", "exec"), {})

    assert ANSWER in capsys.readouterr().out


def test_reports_are_frozen(models: Models) -> None:
    report = models.generate("hello", baseline="off")

    assert isinstance(report, RunReport)
    with pytest.raises(AttributeError):
        report.text = ""  # type: ignore[misc]
