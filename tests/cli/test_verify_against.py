"""`specgen verify --against transformers` compares specgen's decoder with transformers' code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.models.decoder_model import DecoderModel
from tests.cli.conftest import EXACT, Cli
from tests.loading.builders import make_folder


@pytest.fixture
def compare(cli: Cli, tmp_path: Path, checked_sampler: None) -> Any:
    folder = make_folder(tmp_path / "target")
    return lambda *more: cli(
        "verify", "-p", "hello", "-n", 8, "-t", folder, *EXACT, "--backend", "torch", "-d", "lookup",
        "--against", "transformers", *more,
    )  # fmt: skip


def test_the_same_model_gives_the_same_logits_and_answer(compare: Any) -> None:
    ended = compare("--json")

    assert ended.code == 0, ended.err
    (check,) = json.loads(ended.out)["against"]
    assert check["verdict"] == "same"
    assert check["logit_error"] < 1e-5


def test_a_planted_difference_ends_with_exit_code_6(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = DecoderModel.logits

    def leaning(self: DecoderModel, *arguments: Any, **options: Any) -> torch.Tensor:
        result = logits(self, *arguments, **options).clone()
        result[:, 7] = result.max() + 1.0
        return result

    monkeypatch.setattr(DecoderModel, "logits", leaning)

    ended = compare("--json")

    assert ended.code == 6, ended.err
    (check,) = json.loads(ended.out)["against"]
    assert (check["verdict"], check["first_difference"]) == ("different", 0)
    assert check["logit_error"] > 1e-3
