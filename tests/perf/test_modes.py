"""Tests of the comparison tool: its arithmetic on hand-made runs, and the continuation of an interrupted one."""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path

import pytest

from specgen.models.cached_model import CachedModel
from tests.fakes import cached, tiny_model
from tests.perf import saved, tables
from tests.perf.__main__ import arguments_from, our_modes, run_all
from tests.perf.modes import SWEEP, Mode, Run, ours, ratio_with_interval, theirs

PROMPTS = [("code-1", [1, 5, 9, 4]), ("chat-1", [1, 7, 3, 3, 8])]
CATEGORIES = {"code-1": "code", "code-2": "code", "chat-1": "chat"}


def mode(name: str, seconds: dict[str, list[float]], **fields: str) -> Mode:
    """Makes a mode whose runs of ten tokens took `seconds`, by prompt."""
    runs = [Run(name, prompt, [1], each, 10) for prompt, times in seconds.items() for each in times]
    return Mode(name, lambda *_: None, runs, **fields)  # type: ignore[arg-type, return-value]


def test_the_interval_is_over_prompts_with_their_repeats_summed() -> None:
    plain = mode("plain", {"code-1": [1.0, 3.0], "chat-1": [2.0, 2.0]})
    fast = mode("fast", {"code-1": [1.0, 1.0], "chat-1": [1.0, 3.0]})

    ratio, low, high = ratio_with_interval(plain, fast)

    # Sums: 8 / 6. Per prompt 2 and 1, so the logs are log 2 and 0; t with one degree of freedom is 12.706.
    assert ratio == pytest.approx(8 / 6)
    middle, half = math.log(2) / 2, 12.7062 * math.log(2) / 2
    assert (low, high) == pytest.approx((math.exp(middle - half), math.exp(middle + half)), rel=1e-4)


def test_auto_is_compared_with_the_fastest_length_of_each_category() -> None:
    modes = [
        mode("plain", {"code-1": [4.0], "chat-1": [4.0]}),
        mode("spec d k=2", {"code-1": [2.0], "chat-1": [2.0]}, draft="d", length="2"),
        mode("spec d k=8", {"code-1": [1.0], "chat-1": [4.0]}, draft="d", length="8"),
        mode("spec d k=auto", {"code-1": [1.25], "chat-1": [1.6]}, draft="d", length="auto"),
        mode("spec e k=4", {"code-1": [0.1], "chat-1": [0.1]}, draft="e", length="4"),
    ]

    lines = tables.auto_against_fixed(modes, CATEGORIES).splitlines()

    assert lines[1].split()[:4] == ["code", "3.20", "4.00", "(k=8)"]
    assert lines[1].split()[4] == "0.800"
    assert lines[2].split()[:5] == ["chat", "2.50", "2.00", "(k=2)", "1.250"]
    # 2.85 seconds against 4 at k=2, the best single length over all.
    assert lines[3].split()[:5] == ["all", "2.81", "2.00", "(k=2)", "1.404"]


def test_block_is_compared_with_token_verification_of_the_same_draft_and_length() -> None:
    modes = [
        mode("plain", {"code-1": [4.0]}),
        mode("a", {"code-1": [2.0]}, draft="d", length="4", rule="block"),
        mode("b", {"code-1": [2.5]}, draft="d", length="4", rule="token"),
        mode("c", {"code-1": [9.0]}, draft="d", length="8", rule="token"),
    ]

    lines = tables.block_against_token(modes, CATEGORIES).splitlines()

    assert lines[0] == "block over token, d k=4"
    assert [line.split()[:2] for line in lines[1:]] == [["code", "1.250"], ["all", "1.250"]]


def test_both_rules_run_only_where_they_differ() -> None:
    target = cached(tiny_model())

    def names(*words: str) -> list[str]:
        arguments = arguments_from(["-t", "T", "-k", "2,auto", "--verification", "both", *words])
        return [
            made.name
            for draft in ("d", "lookup")
            for made in our_modes(arguments, target, draft, _draft(draft, target))
        ]

    assert names() == ["spec d k=2", "spec d k=auto", "lookup k=2", "lookup k=auto"]
    assert names("--temperature", "0.8") == [
        *("spec d k=2 block", "spec d k=2 token", "spec d k=auto block", "spec d k=auto token"),
        *("lookup k=2", "lookup k=auto"),
    ]


def _draft(name: str, target: CachedModel) -> object:
    return "lookup" if name == "lookup" else target


@pytest.mark.thorough
def test_every_setting_of_the_sweep_writes_the_targets_text_and_is_restored() -> None:
    target, draft = tiny_model(), copy.deepcopy(tiny_model(seed=1))
    before = draft.generation_config.to_dict()
    plain = theirs("plain", target, 12).run(PROMPTS[0][1])

    for suffix, settings in SWEEP.items():
        run = theirs(f"assisted{suffix}", target, 12, assisted=settings, assistant_model=draft).run(PROMPTS[0][1])
        assert run.ids == plain.ids

    assert draft.generation_config.to_dict() == before


@pytest.mark.thorough
def test_an_interrupted_comparison_continues_with_the_same_results(tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    words = ["-t", "T", "-n", "6", "-r", "2", "--json", str(file)]

    def go(*more: str, prompts: int = 2) -> list[Mode]:
        arguments = arguments_from([*words, *more])
        modes = _modes(arguments)
        done = saved.read(file, vars(arguments), modes) if arguments.resume else 0
        run_all(arguments, modes, PROMPTS, done, {})
        return modes

    whole = go()
    file.unlink()
    go("--minutes", "0")
    assert len(json.loads(file.read_text())["runs"]) == 2
    for _ in range(3):
        modes = go("--resume", "--minutes", "0")

    assert [[(run.prompt, run.turn, run.ids) for run in mode.runs] for mode in modes] == [
        [(run.prompt, run.turn, run.ids) for run in mode.runs] for mode in whole
    ]
    assert modes[1].runs[0].counts is not None
    assert whole[1].runs[0].counts is not None
    assert modes[1].runs[0].counts.num_accepted == whole[1].runs[0].counts.num_accepted


def test_a_file_made_with_other_arguments_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    arguments = arguments_from(["-t", "T", "-n", "6", "--json", str(file)])
    run_all(arguments, _modes(arguments), PROMPTS, 0, {})
    other = arguments_from(["-t", "T", "-n", "7", "--json", str(file), "--resume"])

    with pytest.raises(SystemExit, match=r"other arguments \(n\)"):
        saved.read(file, vars(other), _modes(other))


def _modes(arguments: argparse.Namespace) -> list[Mode]:
    target = cached(tiny_model())
    draft = cached(tiny_model(seed=1))
    heat = 0.8
    return [
        ours("plain", target, None, "0", arguments.n, temperature=heat),
        ours("spec", target, draft, "3", arguments.n, temperature=heat),
    ]
