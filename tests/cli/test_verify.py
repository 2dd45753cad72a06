"""`specgen verify` finds a planted difference and reports it in text, JSON and exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.loading import weights
from specgen.models.cached_model import CachedModel
from specgen.text.chat_template import ChatTemplate
from tests.cli.children import Ended
from tests.cli.conftest import Cli


@pytest.fixture
def verify(cli: Cli, toy_arguments: list[str], toys: dict[str, Path], checked_sampler: None) -> Cli:
    """`specgen verify -d wrong ...` on one prompt."""

    def call(*arguments: object) -> Ended:
        return cli("verify", "-p", "hello", *toy_arguments, "-d", toys["wrong"], *arguments)

    return call


def test_a_sound_pair_passes_every_check(verify: Cli) -> None:
    ended = verify()

    labels = [line.split()[0] for line in ended.out.decode().splitlines()]
    assert ended.code == 0
    assert labels == ["target", "draft", *["sampling"] * 7, "logits", "greedy", "output"]


def test_models_that_can_not_be_recorded_are_named(verify: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked are plain passes then."""

    class Failing:
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("no graphs today")

    monkeypatch.setattr(weights, "recorder_for", lambda _: Failing())

    ended = verify("-n", "4")

    assert ended.code == 0
    assert ended.err.count("no graphs today") == 2


def test_json_contains_every_check(verify: Cli) -> None:
    made = json.loads(verify("--json", "-p", "again").out)

    assert (made["type"], made["promise"], made["has_real_difference"]) == ("proof", "exact", False)
    assert all(distribution["is_exact"] and distribution["outcomes"] > 3 for distribution in made["distributions"])
    assert made["laws"] == made["distributions"]
    assert made["batch_invariance"] == {
        "is_invariant": True,
        "max_difference": 0.0,
        "int8_threshold": 0.0,
        "recurrent_difference": None,
    }
    assert made["rows"] == {"is_independent": True, "max_difference": 0.0, "int8_threshold": 0.0}
    assert [text["verdict"] for text in made["texts"]] == ["same", "same"]
    # A draft that is always right or always wrong would prove little.
    assert 0 < made["texts"][0]["accepted"] < made["texts"][0]["drafted"]


@pytest.mark.fault("F98")
def test_variables_of_the_template_are_used(verify: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    encode = ChatTemplate.encode

    def remember(self: ChatTemplate, tokenizer: Any, messages: Any) -> list[int]:
        seen.append(dict(self.options))
        return encode(self, tokenizer, messages)

    monkeypatch.setattr(ChatTemplate, "encode", remember)

    assert verify("--chat-template-kwargs", '{"enable_thinking": false}').code == 0
    assert seen == [{"enable_thinking": False}]


def plant(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Makes passes over several tokens prefer token 7 by `size`, which the target alone never chooses."""
    logits = CachedModel.logits

    def leaning(self: CachedModel, ids: Any, num_last: int, tail: torch.Tensor | None = None) -> torch.Tensor:
        result = logits(self, ids, num_last, tail)
        if num_last > 1:
            result = result.clone()
            result[:, 7] = result.max() + size
        return result

    monkeypatch.setattr(CachedModel, "logits", leaning)


@pytest.mark.thorough
def test_a_planted_difference_ends_with_exit_code_6_and_its_position(
    verify: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, 1.0)

    ended = verify()
    assert ended.code == 6, ended.err
    made = json.loads(verify("--json").out)

    assert "token 0" in ended.err
    assert made["has_real_difference"] is True
    assert (made["texts"][0]["verdict"], made["texts"][0]["first_difference"]) == ("different", 0)
    assert made["texts"][0]["gap"] > made["texts"][0]["limit"]


def test_a_target_that_is_not_batch_invariant_is_reported(verify: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = CachedModel.logits

    def leaking(self: CachedModel, ids: Any, num_last: int, tail: torch.Tensor | None = None) -> torch.Tensor:
        return logits(self, ids, num_last, tail) + 1e-5 * (sum(ids) % 7)

    monkeypatch.setattr(CachedModel, "logits", leaking)

    ended = verify("--json")

    # No text differs, but the next one could.
    made = json.loads(ended.out)
    assert ended.code == 0
    assert (made["promise"], made["batch_invariance"]["is_invariant"]) == ("none", False)


def test_a_failing_draft_is_an_error(verify: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from specgen.core.errors import DraftError
    from specgen.engine.drafters.model import ModelDrafter

    def fail(*_: Any) -> Any:
        raise DraftError("planted")

    monkeypatch.setattr(ModelDrafter, "propose", fail)

    ended = verify("--json")

    assert (ended.code, json.loads(ended.out)["code"]) == (4, "draft_incompatible")


@pytest.mark.parametrize("wrong", [["-n", "0"], ["-k", "65"], ["-k", "0"], ["-d", "none"], ["--quant", "int3"]])
def test_a_setting_out_of_range_is_refused(verify: Cli, wrong: list[str]) -> None:
    ended = verify(*wrong, "--json")

    assert (ended.code, json.loads(ended.out)["exit_code"]) == (2, 2)


def test_an_internal_error_is_reported_in_the_json_document(verify: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("specgen.cli.verify.checks.run_checks", fail)

    ended = verify("--json")

    document = json.loads(ended.out)
    assert ended.code == document["exit_code"] == 1
    assert "RuntimeError" in document["message"]
