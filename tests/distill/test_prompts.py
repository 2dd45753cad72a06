"""The bundled prompts are distinct, cover every category, depend on the seed, and exclude the measured prompts."""

from __future__ import annotations

from collections import Counter

from specgen.distill.prompts import CATEGORIES, SOURCE_CATEGORIES, Sources, compose, sources_from
from specgen.text.prompts import bundled_prompts

PASSAGE = "The river rises in the hills and runs for ninety kilometres to the sea. Mills stood on its banks. " * 3
PROGRAM = "def double(values):\n    result = []\n    for value in values:\n        result.append(2 * value)\n" * 2
SOURCES = Sources((PASSAGE,), (PROGRAM,))


def test_thousands_of_distinct_prompts_of_every_category_are_composed() -> None:
    prompts = compose(4000, 0)

    assert len({prompt.text for prompt in prompts}) == len(prompts) == 4000
    counts = Counter(prompt.category for prompt in prompts)
    assert set(counts) == {*CATEGORIES, *SOURCE_CATEGORIES} - {"edit"}
    assert min(counts.values()) > 200


def test_every_slot_is_filled() -> None:
    for prompt in [*compose(2000, 1), *compose(300, 1, SOURCES)]:
        assert "{@" not in prompt.text
        assert ".." not in prompt.text.replace("...", "")


def test_a_seed_gives_the_same_prompts() -> None:
    assert compose(50, 3) == compose(50, 3)
    assert compose(50, 3) != compose(50, 4)


def test_prompts_with_sources_contain_them() -> None:
    prompts = compose(200, 0, SOURCES)

    assert {"edit", "summary", "extract", "code"} == {prompt.category for prompt in prompts}
    assert all("river" in prompt.text or "kilomet" in prompt.text or "double" in prompt.text for prompt in prompts)


def test_a_variable_to_rename_is_one_of_the_code() -> None:
    renames = [p.text for p in compose(300, 0, SOURCES) if p.text.startswith("Rename")]

    assert renames
    assert all("Rename `result`" in text for text in renames)


def test_without_code_no_prompt_needs_code() -> None:
    prompts = compose(100, 0, Sources((PASSAGE,)))

    assert prompts
    assert not any("```" in prompt.text for prompt in prompts)
    assert compose(10, 0, Sources()) == []


def test_sources_are_whole_sentences_and_whole_lines() -> None:
    answers = [
        ("passage", "word " * 60 + "end. An unfinished sen"),
        ("program", f"Here it is:\n```python\n{PROGRAM}```\nIt doubles."),
        ("program", "no code at all"),
        ("chat", PASSAGE),
    ]

    sources = sources_from(answers)

    assert [text[-4:] for text in sources.passages] == ["end."]
    assert sources.programs == (PROGRAM.rstrip(),)


def test_the_prompts_that_are_measured_on_are_not_trained_on() -> None:
    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}

    trained = set().union(*(grams(prompt.text) for prompt in [*compose(6000, 0), *compose(6000, 1)]))
    measured = set().union(*(grams(m.content) for prompt in bundled_prompts() for m in prompt.messages))

    assert measured
    assert not trained & measured
