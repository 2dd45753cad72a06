"""Batch invariance: rows that influence each other are detected, and the run is reported as not lossless."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.draft_name import LOOKUP
from specgen.core.results import BatchInvarianceCheck, RunInfo
from specgen.core.settings import ModelSettings, PairSettings, SamplingSettings
from specgen.loading.weights import load_weights
from specgen.models.batch_invariance import check_batch_invariance, outlier_threshold
from specgen.models.cached_model import CachedModel
from specgen.models.decoder_model import DecoderModel
from specgen.models.packing import may_run_kernels
from specgen.models.transformers_model import TransformersModel
from specgen.render.messages import format_banner
from specgen.render.summary import format_summary
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import resolve_pair
from tests.cli.conftest import Cli, clean_environment, cli
from tests.decoders import decoder_model
from tests.fakes import tiny_model
from tests.loading.builders import resolved
from tests.render import runs
from tests.toys import random_toy, save_toy

__all__ = ["clean_environment", "cli"]
INTERACTING = BatchInvarianceCheck(0.13, 6.0)


@pytest.fixture(scope="module")
def with_threshold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves a checkpoint in bitsandbytes' int8 with its default threshold, with outliers for some tokens."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    root = tmp_path_factory.mktemp("int8")
    model = random_toy(0)
    with torch.no_grad():
        model.model.embed_tokens.weight[200:].mul_(100)
    plain = save_toy(root / "plain", model=model)
    config = BitsAndBytesConfig(load_in_8bit=True)
    quantized = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config, trust_remote_code=False, local_files_only=True
    )
    return save_toy(root / "int8", model=quantized)


@pytest.mark.parametrize("make", [TransformersModel, decoder_model])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_plain_weights_are_batch_invariant(kind: str, make: Callable[..., CachedModel]) -> None:
    model = make(tiny_model(kind), 96)

    assert check_batch_invariance(model) == BatchInvarianceCheck(0.0, 0.0)
    assert model.length == 0


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_our_own_quantizations_are_batch_invariant(quant: Any, tmp_path: Path) -> None:
    folder = save_toy(tmp_path / "toy", model=random_toy(0, hidden_size=64))
    settings = ModelSettings(str(folder), quant=quant, dtype="bfloat16", device="cpu")
    model = load_weights(resolved(folder, settings), 292).model

    assert isinstance(model, DecoderModel)
    assert check_batch_invariance(model).is_invariant


def test_int8_with_the_librarys_threshold_is_detected(with_threshold: Path) -> None:
    settings = ModelSettings(str(with_threshold), device="cpu")
    model = load_weights(resolved(with_threshold, settings), 292).model

    check = check_batch_invariance(model)

    assert outlier_threshold(model.module) == 6.0
    assert not check.is_invariant
    # Not only by its threshold: the passes differ.
    assert check.max_difference > 0


class Leaky(torch.nn.Module):
    """A model whose logits depend on all rows of a pass, as with a kernel that looks at the whole batch."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.change = tiny_model(), change
        self.config = self.inner.config

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def forward(self, logits_to_keep: int = 0, past_key_values: Any = None, **options: Any) -> Any:
        output = self.inner(logits_to_keep=logits_to_keep, past_key_values=past_key_values, **options)
        output.logits = self.change(output.logits)
        return output


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits + 1e-6 * logits.mean(),
        lambda logits: logits + torch.where(logits.amax() > 0, torch.nan, 0.0),
    ],
    ids=["a millionth", "nan"],
)
def test_a_planted_dependence_between_rows_is_detected(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert not check_batch_invariance(TransformersModel(Leaky(change), 96)).is_invariant


def test_a_nan_after_one_of_several_tails_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = iter([0.0, 0.0, float("nan")] * 2)
    monkeypatch.setattr("specgen.models.batch_invariance._head_logits", lambda *_: torch.full((2, 2), next(rows)))

    assert not check_batch_invariance(TransformersModel(tiny_model(), 96)).is_invariant


def test_a_kernel_that_repacks_its_weights_in_the_first_pass_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = iter([1.0, *[2.0] * 5])
    monkeypatch.setattr("specgen.models.batch_invariance._head_logits", lambda *_: torch.full((2, 2), next(rows)))

    assert check_batch_invariance(TransformersModel(tiny_model(), 96)) == BatchInvarianceCheck(0.0)


def opened(folder: Path, dtype: str = "auto", drafter: str = "none") -> LoadedModels:
    settings = ModelSettings(str(folder), quant="none", dtype=dtype, device="cpu")  # type: ignore[arg-type]
    return load_models(resolve_pair(PairSettings(settings, drafter)))  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_arithmetic_in_16_bits_is_checked_at_the_start_in_two_passes(
    stored: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, passes = save_toy(tmp_path / "toy", model=random_toy(0).to(stored)), []
    logits = CachedModel.logits
    monkeypatch.setattr(CachedModel, "logits", lambda *arguments: (passes.append(1), logits(*arguments))[1])

    models = opened(folder, "bfloat16")

    assert models.batch_invariance == BatchInvarianceCheck(0.0)
    assert len(passes) == 2


@pytest.mark.skipif(not may_run_kernels(), reason="needs AVX2")
@pytest.mark.parametrize(
    ("dtype", "stored"), [("auto", torch.bfloat16), ("auto", torch.float16), ("float16", torch.bfloat16)]
)
def test_weights_in_16_bits_on_our_own_kernel_are_exact(
    dtype: str, stored: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embeddings stay as stored, while the arithmetic is float32."""
    monkeypatch.setattr("specgen.loading.placement.has_fast_bf16_cpu", lambda: False)
    folder = save_toy(tmp_path / "toy", model=random_toy(0).to(stored))

    assert opened(folder, dtype).batch_invariance == BatchInvarianceCheck(0.0, is_exact=True)


def test_plain_float32_is_not_checked(tmp_path: Path) -> None:
    assert opened(save_toy(tmp_path / "toy", model=random_toy(0)), "float32").batch_invariance is None


def test_a_dependence_in_16_bit_weights_is_reported_whenever_the_draft_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specgen.runtime.loaded_models.check_batch_invariance", lambda *_, **__: INTERACTING)
    folder = save_toy(tmp_path / "toy", model=random_toy(0))

    _check_reported_once(lambda drafter: opened(folder, "bfloat16", drafter))


@pytest.mark.thorough
def test_int8_with_a_threshold_is_reported_whenever_the_draft_is_added(with_threshold: Path) -> None:
    settings = ModelSettings(str(with_threshold), device="cpu")

    _check_reported_once(lambda drafter: load_models(resolve_pair(PairSettings(settings, drafter))))  # type: ignore[arg-type]


def _check_reported_once(opened: Callable[[str], LoadedModels]) -> None:
    """Adds the drafter at the start, to a copy of models without one (bench), and in a running chat."""
    drafting, baseline = opened("lookup"), opened("none")
    with_lookup = baseline.pair.with_draft(LOOKUP, ModelSettings(""))
    copy, baseline_copy = baseline.with_draft(with_lookup), baseline.with_draft(baseline.pair)
    notices_of_change = baseline.replace_draft(with_lookup)

    for notices in (drafting.notices, copy.notices, notices_of_change):
        assert [notice.split(":")[0] for notice in notices] == ["not lossless"]
    assert copy.batch_invariance is baseline.batch_invariance is not None
    assert baseline.notices == baseline_copy.notices == ()
    assert drafting.replace_draft(with_lookup) == [], "reported at the start already"


def info(check: BatchInvarianceCheck | None = INTERACTING, **changes: Any) -> RunInfo:
    plain = runs.info()
    names = ("target", "draft", "drafter", "num_draft_tokens", "sampling", "sampling_source", "max_new_tokens")
    values = {name: getattr(plain, name) for name in names}
    return RunInfo(**{**values, "load_seconds": 1.0, "batch_invariance": check, **changes})


def test_banner_and_summary_report_a_run_that_is_not_lossless() -> None:
    report = runs.report(runs.counts((5, 2)), info=info())

    banner, summary = format_banner(info()).plain, format_summary(report, 100).plain

    assert "NOT LOSSLESS" in banner
    assert "NOT LOSSLESS" in summary
    assert "NOT LOSSLESS" not in format_banner(info(None)).plain


@pytest.mark.parametrize(
    ("changes", "guarantee"),
    [
        ({}, "none"),
        ({"drafter": "none"}, "exact"),
        ({"num_draft_tokens": 0}, "exact"),
        ({"check": BatchInvarianceCheck(0.0)}, "near_tie"),
        ({"check": BatchInvarianceCheck(1e-9)}, "none"),
        ({"check": BatchInvarianceCheck(float("nan"))}, "none"),
        ({"check": None, "sampling": SamplingSettings(temperature=1.0)}, "same_distribution"),
        ({"sampling": SamplingSettings(temperature=1.0)}, "none"),
        ({"check": None, "target": runs.ModelInfo("toy", "none", "float32", "cpu")}, "exact"),
        ({"check": None, "target": runs.ModelInfo("toy", "none", "bfloat16", "cpu")}, "near_tie"),
    ],
)
def test_the_guarantee_follows_from_weights_and_sampling(changes: dict[str, Any], guarantee: str) -> None:
    assert info(**{"check": INTERACTING, **changes}).guarantee == guarantee


def test_the_command_line_reports_it_in_json_and_as_a_warning(cli: Cli, with_threshold: Path) -> None:
    ended = cli("generate", "hello", "-t", with_threshold, "--device", "cpu", "-n", 4, "--json", "--baseline", "off")

    document = json.loads(ended.out)
    assert ended.code == 0
    assert document["guarantee"]["class"] == document["promise"]["class"] == "none"
    assert document["guarantee"]["is_lossless"] is document["promise"]["is_lossless"] is False
    assert document["guarantee"]["batch_invariance"]["is_invariant"] is False
    assert document["guarantee"]["batch_invariance"]["int8_threshold"] == 6.0
    assert document["promise"]["row_check"]["int8_threshold"] == 6.0
    assert [notice.split(":")[0] for notice in document["notices"]] == ["not lossless"]
    assert ended.err.count("not lossless") >= 1
    assert "NOT LOSSLESS" in ended.err


def test_without_a_draft_such_a_target_is_lossless(cli: Cli, with_threshold: Path) -> None:
    ended = cli("generate", "hello", "-t", with_threshold, "--device", "cpu", "-n", 4, "--json", "-d", "none")

    assert json.loads(ended.out)["guarantee"]["is_lossless"] is True
    assert "not lossless" not in ended.err
