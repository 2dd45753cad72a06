"""`specgen verify`: it finds a planted difference, forgives a near tie, and says so in words, JSON and exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.engine.sampling import TokenDistributions
from specgen.models.transformers_model import CachedModel
from specgen.verify.checks import distribution_errors
from tests.cli.children import Ended
from tests.cli.conftest import Cli


@pytest.fixture
def verify(cli: Cli, toy_arguments: list[str], toys: dict[str, Path]) -> Cli:
    """`specgen verify -d wrong ...` on one prompt."""

    def call(*arguments: object) -> Ended:
        return cli("verify", "-p", "hello", *toy_arguments, "-d", toys["wrong"], *arguments)

    return call


def test_a_sound_pair_is_proven(verify: Cli) -> None:
    ended = verify()

    lines = ended.out.decode().splitlines()
    assert ended.code == 0
    assert [line.split()[0] for line in lines] == ["target", "draft", *["sampling"] * 6, "logits", "greedy", "output"]
    assert all(line.split()[1] == "exact," for line in lines if line.startswith("sampling"))
    assert lines[-2].split()[1] == "same:"


def test_json_holds_every_check(verify: Cli) -> None:
    made = json.loads(verify("--json", "-p", "again").out)

    assert (made["type"], made["promise"], made["has_real_difference"]) == ("proof", "exact", False)
    assert all(distribution["is_exact"] and distribution["outcomes"] > 3 for distribution in made["distributions"])
    assert made["laws"] == made["distributions"]
    assert made["batch_invariance"] == {"is_invariant": True, "max_difference": 0.0, "int8_threshold": 0.0}
    assert made["rows"] == {"is_independent": True, "max_difference": 0.0, "int8_threshold": 0.0}
    assert [text["verdict"] for text in made["texts"]] == ["same", "same"]
    # A draft that was never right, or always, would prove little.
    assert 0 < made["texts"][0]["accepted"] < made["texts"][0]["drafted"]


def plant(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Passes over several tokens lift a token the target alone would never take, by its distance and `size` more."""
    logits = CachedModel.logits

    def leaning(self: CachedModel, ids: Any, num_last: int, tail: torch.Tensor | None = None) -> torch.Tensor:
        found = logits(self, ids, num_last, tail)
        if num_last > 1:
            found = found.clone()
            found[:, 7] = found.max() + size
        return found

    monkeypatch.setattr(CachedModel, "logits", leaning)


def test_a_planted_difference_ends_with_6_and_says_where_and_by_how_much(
    verify: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, 1.0)

    ended = verify()
    assert ended.code == 6, ended.err
    made = json.loads(verify("--json").out)

    assert "DIFFERENT at 0 (" in ended.out.decode()
    assert ended.err.startswith("error: 1 of 1 greedy texts differ from the target's own, the first at token 0")
    assert made["has_real_difference"] is True
    assert (made["texts"][0]["verdict"], made["texts"][0]["first_difference"]) == ("different", 0)


def test_rows_that_change_each_other_are_told(verify: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = CachedModel.logits

    def leaking(self: CachedModel, ids: Any, num_last: int, tail: torch.Tensor | None = None) -> torch.Tensor:
        found = logits(self, ids, num_last, tail)
        return found + 1e-5 * (sum(ids) % 7)

    monkeypatch.setattr(CachedModel, "logits", leaking)

    ended = verify()

    # No text differs, but nothing can be promised of the next one.
    assert ended.code == 0
    assert "output   NOT LOSSLESS" in ended.out.decode()


def test_a_loop_with_the_wrong_law_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from specgen.engine import verification

    monkeypatch.setattr(verification, "residual_distribution", lambda target_probs, draft_probs: target_probs)

    assert any(not law.is_exact for law in distribution_errors())


def test_the_target_law_of_the_proof_is_no_work_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from specgen.engine.drafters import model as drafters

    original = drafters.token_distributions

    def halved(*arguments: Any) -> TokenDistributions:
        law = original(*arguments)
        return TokenDistributions(law.ids, None if law.probs is None else law.probs.flip(-1), law.is_finite)

    # A draft with another law is no error: only the target's counts.
    monkeypatch.setattr(drafters, "token_distributions", halved)

    assert all(law.is_exact for law in distribution_errors())


def test_a_failing_draft_is_an_error_and_no_proof(verify: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_bug_is_told_in_the_document_that_was_asked_for(verify: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("specgen.cli.verify.run._prove", fail)

    ended = verify("--json")

    told = json.loads(ended.out)
    assert ended.code == told["exit_code"] == 1
    assert "unexpected RuntimeError: ours" in told["message"]
