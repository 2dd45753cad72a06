"""Tests `--tree`: the same text, what is reported about trees, and models that compute none."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from specgen.cli.chat.settings import ChatSettings
from specgen.cli.options.groups import SamplingOptions
from tests.cli.conftest import Cli, Ended
from tests.profiles import thorough_except
from tests.toys import ANSWER


@pytest.fixture
def pair(toys: dict[str, Path], toy_arguments: list[str]) -> list[str]:
    return [*toy_arguments, "--draft", str(toys["wrong"])]


def document(ended: Ended) -> Any:
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.mark.parametrize("sampled", [(), ("--temperature", "0.7", "--seed", "3", "--same-text")])
@pytest.mark.parametrize(
    ("length", "tree"),
    thorough_except([("2", "5"), ("auto", "auto")], itertools.product(["2", "auto"], ["1", "5", "auto"])),
)
@pytest.mark.fast("*-sampled0")
def test_a_tree_changes_no_text(cli: Cli, pair: list[str], tree: str, length: str, sampled: tuple[str, ...]) -> None:
    plain = document(cli("generate", "hello", *pair, "-k", "0", "--json", *sampled))

    made = document(cli("generate", "hello", *pair, "-k", length, "--tree", tree, "--json", *sampled))

    assert made["token_ids"] == plain["token_ids"]
    assert made["speculative"]["num_tree_nodes"] == (16 if tree == "auto" else int(tree))
    if tree != "auto" and length != "auto":
        stats = made["stats"]
        assert stats["num_tree_nodes"] == int(tree) * stats["num_tree_steps"] > 0


def test_the_option_wins_over_its_variable(cli: Cli, pair: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGEN_TREE", "3")

    assert document(cli("generate", "hello", *pair, "--json"))["speculative"]["num_tree_nodes"] == 3
    assert document(cli("generate", "hello", *pair, "--json", "--tree=off"))["speculative"]["num_tree_nodes"] == 0


@pytest.mark.parametrize(
    ("options", "num_nodes"),
    [
        (("-k", "auto"), 16),
        (("-k", "3"), 0),
        (("-k", "auto", "--tree", "off"), 0),
        (("-k", "auto", "--temperature", "0.7"), 0),
        (("-k", "auto", "--temperature", "0.7", "--tree", "auto"), 16),
    ],
    ids=["auto", "fixed", "off", "sampled", "sampled-auto"],
)
def test_drafts_branch_by_default_where_costs_decide_their_length(
    cli: Cli, pair: list[str], options: tuple[str, ...], num_nodes: int
) -> None:
    made = document(cli("generate", "hello", *pair, "--json", *options))

    assert made["speculative"]["num_tree_nodes"] == num_nodes
    assert num_nodes or made["stats"]["num_tree_steps"] == 0
    assert made["notices"] == []


def test_a_draft_that_cannot_branch_is_no_reason_for_a_notice_by_default(cli: Cli, pair: list[str]) -> None:
    made = document(cli("generate", "hello", *pair, "--json", "--draft", "lookup"))

    assert made["speculative"]["num_tree_nodes"] == 0
    assert not any("--tree" in notice for notice in made["notices"])


@pytest.mark.parametrize("value", ["0", "17", "-1", "x", ""])
@pytest.mark.parametrize("command", [("generate", "hello"), ("verify",)])
def test_an_invalid_size_is_refused(cli: Cli, pair: list[str], command: tuple[str, ...], value: str) -> None:
    ended = cli(*command, *pair, f"--tree={value}")

    assert ended.code == 2
    assert "--tree" in ended.err


@pytest.mark.parametrize("draft", ["lookup", "none", "transformers"])
def test_where_no_tree_is_computed_the_option_is_reported(
    cli: Cli, toys: dict[str, Path], toy_arguments: list[str], draft: str
) -> None:
    drafting = ["--draft", draft]
    if draft == "transformers":
        drafting = ["--draft", str(toys["wrong"]), "--backend", "transformers"]

    made = document(cli("generate", "hello", *toy_arguments, *drafting, "--tree", "4", "--json"))

    assert made["text"] == ANSWER
    assert made["speculative"]["num_tree_nodes"] == 0
    assert any("--tree" in notice for notice in made["notices"])


def test_a_chats_replies_have_trees() -> None:
    settings = ChatSettings(SamplingOptions(), tree="4").for_reply(None)

    assert (settings.num_tree_nodes, settings.tree_schedule) == (4, "constant")


def test_events_have_the_nodes_of_a_round(cli: Cli, pair: list[str]) -> None:
    ended = cli("generate", "hello", *pair, "-k", "3", "--tree", "4", "--format", "ndjson")

    steps = [event for event in map(json.loads, ended.out.splitlines()) if event["type"] == "step"]
    trees = [step for step in steps if step["nodes"] is not None]
    assert trees
    for step in trees:
        assert len(step["nodes"]) == 4
        assert all(-1 <= node["parent"] < index for index, node in enumerate(step["nodes"]))
        assert {token["id"] for token in step["tokens"][: step["drafted"]]} <= {node["id"] for node in step["nodes"]}
    first = trees[0]
    assert [token["text"] for token in first["tokens"][:2]] == [node["text"] for node in first["nodes"][:2]]


@pytest.mark.usefixtures("checked_sampler")
@pytest.mark.thorough
def test_a_pair_with_trees_is_verified(cli: Cli, pair: list[str]) -> None:
    ended = cli("verify", *pair, "-p", "hello", "-n", "12", "-k", "3", "--tree", "5")

    assert ended.code == 0, ended.err
