"""Composes thousands of distinct training prompts of nine categories from bundled templates and word lists.

Prompts about a text, such as summaries and edits, use one that the target generated for an earlier prompt.
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
"""Prompts whose answers become the texts of others. They are training data like all answers."""
MIN_SOURCE_CHARS, MAX_SOURCE_CHARS = 120, 700
MAX_TRIES = 50
"""Attempts per prompt. A template with few combinations runs out, and later attempts use others."""
_SLOT = re.compile(r"\{(?:(\d+)\.\.(\d+)|@(\w+)|(\w+))\}")
_CODE = re.compile(r"```\w*\n(.+?)```", re.DOTALL)
_IDENTIFIER = re.compile(r"\b([a-z_]{3,})\b(?= *=[^=])")


@dataclass(frozen=True, slots=True)
class SeedPrompt:
    """A prompt for the target.

    Args:
        category: One of `CATEGORIES` or `SOURCE_CATEGORIES`; `own` for a user's prompt, `self` for the target's.
        text: The user message.
    """

    category: str
    text: str


@dataclass(frozen=True, slots=True)
class Sources:
    """Paragraphs and code that the target generated."""

    passages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()


def sources_from(answers: Sequence[tuple[str, str]]) -> Sources:
    """Selects answers that can be sources.

    Args:
        answers: Category of the prompt and text of the answer.
    """
    passages = [_whole_sentences(text) for category, text in answers if category == "passage"]
    programs = [_code_of(text) for category, text in answers if category in ("program", "code")]
    passages, programs = ([text for text in texts if len(text) >= MIN_SOURCE_CHARS] for texts in (passages, programs))
    return Sources(tuple(passages), tuple(programs))


def compose(num_prompts: int, seed: int, sources: Sources | None = None) -> list[SeedPrompt]:
    """Composes distinct prompts, with the categories in rotation.

    Args:
        num_prompts: How many; the result is shorter only if the combinations run out.
        seed: Selects the prompts.
        sources: If given, only prompts that need sources are composed; else only those that need none.
    """
    rng = random.Random(seed)  # noqa: S311 - a choice of words, no secret
    templates = _usable_templates(sources)
    categories = [name for name in (*CATEGORIES, *SOURCE_CATEGORIES) if templates.get(name)]
    prompts: dict[str, SeedPrompt] = {}
    tries = 0
    while categories and len(prompts) < num_prompts and tries < MAX_TRIES * num_prompts:
        category = categories[tries % len(categories)]
        tries += 1
        text = _fill(rng.choice(templates[category]), rng, sources or Sources())
        prompts.setdefault(text, SeedPrompt(category, text))
    return list(prompts.values())


@cache
def _seed_set() -> dict[str, Any]:
    text = resources.files("specgen.distill").joinpath("prompts.json").read_text(encoding="utf-8")
    seeds: dict[str, Any] = json.loads(text)
    return seeds


def _usable_templates(sources: Sources | None) -> dict[str, list[str]]:
    """Returns the templates of each category: those that need no sources, or those whose sources are available."""

    def is_usable(template: str) -> bool:
        needed = {slot[3] for slot in _SLOT.finditer(template) if slot[3]}
        if sources is None or not needed:
            return sources is None and not needed
        has_passage = bool(sources.passages) or needed.isdisjoint({"passage", "typos"})
        return has_passage and (bool(sources.programs) or needed.isdisjoint({"code", "identifier"}))

    return {
        category: [template for template in templates if is_usable(template)]
        for category, templates in _seed_set()["templates"].items()
    }


def _fill(template: str, rng: random.Random, sources: Sources) -> str:
    """Fills every slot of a template; all source slots use the same text."""
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
    """Drops, doubles or swaps a letter in about every sixth longer word."""
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
    """Returns the start of a text on one line, up to the last sentence that fits."""
    line = " ".join(text.split())[:MAX_SOURCE_CHARS]
    return line[: line.rfind(".") + 1]


def _code_of(text: str) -> str:
    """Returns the first code block of an answer, as many whole lines as fit."""
    block = _CODE.search(text)
    if block is None:
        return ""
    code = block[1][:MAX_SOURCE_CHARS]
    return code.rstrip() if len(block[1]) <= MAX_SOURCE_CHARS else code[: code.rfind("\n")].rstrip()
