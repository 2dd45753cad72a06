"""The bundled prompt set: templates and lists in, thousands of distinct prompts of nine kinds out. No torch.

Prompts that work on a text (summaries, edits) take one that the target wrote itself: what it was asked before.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

CATEGORIES = ("code", "edit", "chat", "math", "summary", "extract", "translation", "qa", "story")
SOURCE_CATEGORIES = ("passage", "program")
"""Prompts whose answers are the texts of others; they are trained on like all."""
MIN_SOURCE_CHARS, MAX_SOURCE_CHARS = 120, 700
MAX_TRIES = 50
"""A template with few combinations is used up at some point; then others serve."""
_SLOT = re.compile(r"\{(?:(\d+)\.\.(\d+)|@(\w+)|(\w+))\}")
_CODE = re.compile(r"```\w*\n(.+?)```", re.DOTALL)
_IDENTIFIER = re.compile(r"\b([a-z_]{3,})\b(?= *=[^=])")


@dataclass(frozen=True, slots=True)
class SeedPrompt:
    """A prompt to let the target answer.

    Args:
        category: One of `CATEGORIES` or `SOURCE_CATEGORIES`; `own` for a user's, `self` for a target's own.
        text: The user's turn.
    """

    category: str
    text: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Texts that the target wrote: paragraphs, and pieces of code."""

    passages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


def sources_from(answers: Sequence[tuple[str, str]]) -> Sources:
    """What answers can serve as sources.

    Args:
        answers: Category of the prompt and text of the answer.
    """
    passages = [_whole_sentences(text) for category, text in answers if category == "passage"]
    programs = [_code_of(text) for category, text in answers if category in ("program", "code")]
    return Sources(tuple(filter(_is_long_enough, passages)), tuple(filter(_is_long_enough, programs)))


def compose(num_prompts: int, seed: int, sources: Sources | None = None) -> list[SeedPrompt]:
    """Distinct prompts, kinds by turns.

    Args:
        num_prompts: How many; fewer come out only if the combinations are used up.
        seed: Another seed, other prompts.
        sources: With sources, prompts that need them and no others; without, those that need none.
    """
    rng = random.Random(seed)  # noqa: S311 - a choice of words, no secret
    templates = _usable_templates(sources)
    categories = [name for name in (*CATEGORIES, *SOURCE_CATEGORIES) if templates.get(name)]
    found: dict[str, SeedPrompt] = {}
    tries = 0
    while categories and len(found) < num_prompts and tries < MAX_TRIES * num_prompts:
        category = categories[tries % len(categories)]
        tries += 1
        text = _filled(rng.choice(templates[category]), rng, sources or Sources())
        found.setdefault(text, SeedPrompt(category, text))
    return list(found.values())


@cache
def _seed_set() -> dict[str, Any]:
    text = resources.files("specgen.distill").joinpath("prompts.json").read_text(encoding="utf-8")
    seeds: dict[str, Any] = json.loads(text)
    return seeds


def _usable_templates(sources: Sources | None) -> dict[str, list[str]]:
    """Templates by category: those without sources, or those whose sources there are."""
    available = {
        "passage": bool(sources and sources.passages),
        "typos": bool(sources and sources.passages),
        "code": bool(sources and sources.programs),
        "identifier": bool(sources and sources.programs),
    }

    def is_usable(template: str) -> bool:
        wanted = [found[3] for found in _SLOT.finditer(template) if found[3]]
        return bool(wanted) == (sources is not None) and all(available[name] for name in wanted)

    return {
        category: [template for template in templates if is_usable(template)]
        for category, templates in _seed_set()["templates"].items()
    }


def _filled(template: str, rng: random.Random, sources: Sources) -> str:
    """A template with every slot filled; the slots of a source speak of the same text."""
    program = rng.choice(sources.programs) if sources.programs else ""
    passage = rng.choice(sources.passages) if sources.passages else ""
    lists = _seed_set()["lists"]

    def fill(slot: re.Match[str]) -> str:
        low, high, source, name = slot.groups()
        if low:
            return str(rng.randint(int(low), int(high)))
        if source == "code":
            return f"```\n{program}\n```"
        if source == "identifier":
            names = sorted(set(_IDENTIFIER.findall(program)))
            return rng.choice(names) if names else "value"
        if source:
            return passage if source == "passage" else _with_typos(passage, rng)
        return str(rng.choice(lists[name]))

    return _SLOT.sub(fill, template)


def _with_typos(text: str, rng: random.Random) -> str:
    """About every sixth longer word gets a letter dropped, doubled or swapped."""
    words = text.split(" ")
    for index, word in enumerate(words):
        if len(word) > 3 and word.isalpha() and rng.random() < 1 / 6:
            at = rng.randrange(1, len(word) - 1)
            changes = (
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            )
            words[index] = rng.choice(changes)
    return " ".join(words)


def _whole_sentences(text: str) -> str:
    """The beginning of a text, on one line, up to the last sentence that fits."""
    line = " ".join(text.split())[:MAX_SOURCE_CHARS]
    return line[: line.rfind(".") + 1]


def _code_of(text: str) -> str:
    """The first block of code of an answer, whole lines that fit."""
    found = _CODE.search(text)
    if found is None:
        return ""
    code = found[1][:MAX_SOURCE_CHARS]
    return code.rstrip() if len(found[1]) <= MAX_SOURCE_CHARS else code[: code.rfind("\n")].rstrip()


def _is_long_enough(text: str) -> bool:
    return len(text) >= MIN_SOURCE_CHARS
