"""The bytes that weights take and that a pass reads, against counts by hand and the modules of loaded models."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from specgen.core.errors import SettingsError
from specgen.core.results import ModelInfo
from specgen.core.settings import ModelSettings, PairSettings, Quantization
from specgen.doctor.memory_plan import plan_memory
from specgen.doctor.model_plan import plan_models
from specgen.engine.contract import LanguageModel
from specgen.loading import placement
from specgen.loading.cuda_memory import cuda_bytes
from specgen.loading.decoder_weights import weight_bytes
from specgen.loading.placement import Placement
from specgen.loading.resolved_model import ResolvedModel, Role
from specgen.loading.weight_sizes import StoredWeights, bytes_per_pass, needed_bytes
from specgen.loading.weights import load_weights
from specgen.models import formats, shortlist_head
from specgen.models.decoder_model import DecoderModel
from specgen.models.draft_head import DraftHeadModel
from specgen.models.formats import NativeLinear
from specgen.models.packing import may_run_kernels
from specgen.models.shortlist_head import ShortlistHead
from specgen.models.step_kernels import NativeNorm
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import resolve_pair
from tests.draft_heads import resolved_head, write_draft
from tests.loading.builders import resolved
from tests.toys import random_toy, save_toy

VOCAB, HIDDEN = 1000, 32
TOTAL = 100_000


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("sizes") / "toy", model=random_toy(0, hidden_size=HIDDEN))


def decoder(folder: Path, stored: str, *, is_tied: bool) -> ResolvedModel:
    found = resolved(folder, ModelSettings(str(folder)))
    assert found.config.decoder is not None
    spec = replace(found.config.decoder, is_tied=is_tied, vocab_size=VOCAB)
    return replace(found, config=replace(found.config, decoder=spec, dtype=stored))


@pytest.mark.parametrize(
    ("is_tied", "stored", "dtype", "quant", "device", "unread"),
    [
        # The packed head of a tied model is a copy.
        (True, "bfloat16", "float32", "nf4", "cpu", 2 * 32_000),
        (True, "float32", "float32", "int8", "cpu", 4 * 32_000),
        (True, "float32", "float16", "none", "cpu", 4 * 32_000),
        (True, "bfloat16", "bfloat16", "none", "cpu", 0),
        (True, "bfloat16", "float32", "none", "cpu", 0),
        (True, "bfloat16", "bfloat16", "nf4", "cuda:0", 0),
        (False, "bfloat16", "float32", "nf4", "cpu", 2 * 32_000),
        (False, "bfloat16", "float32", "none", "cpu", 4 * 32_000),
        (False, "float32", "bfloat16", "nf4", "cuda:0", 2 * 32_000),
        # As stored.
        (True, "bfloat16", "bfloat16", "none", "", 0),
        (False, "bfloat16", "bfloat16", "none", "", 2 * 32_000),
    ],
)
def test_an_embedding_is_read_only_where_it_is_the_head(
    toy: Path, is_tied: bool, stored: str, dtype: str, quant: str, device: str, unread: int
) -> None:
    assert (
        bytes_per_pass(decoder(toy, stored, is_tied=is_tied), StoredWeights(TOTAL, dtype, quant, device))
        == TOTAL - unread
    )


@pytest.mark.parametrize(
    ("num_draft_ids", "quant", "of_target"), [(50, "none", 0), (None, "none", 2 * 320 * 32), (None, "nf4", 0)]
)
def test_a_draft_head_reads_its_own_head_or_its_targets(
    tmp_path: Path, num_draft_ids: int | None, quant: str, of_target: int
) -> None:
    ids = None if num_draft_ids is None else range(num_draft_ids)
    draft = resolved_head(write_draft(tmp_path / "draft", random_toy(0, hidden_size=HIDDEN), draft_ids=ids))

    assert bytes_per_pass(draft, StoredWeights(TOTAL, "bfloat16", quant, "cpu")) == TOTAL + of_target


def stored_as(info: ModelInfo) -> StoredWeights:
    return StoredWeights(info.num_bytes, info.dtype, info.quant, info.device)


def bytes_multiplied(model: LanguageModel) -> int:
    """The weights of a loaded model that a pass multiplies by, or normalizes with."""
    if isinstance(model, DecoderModel):
        return weight_bytes(nn.ModuleList([*model.decoder.layers, model.decoder.norm, model.decoder.head]))
    assert isinstance(model, DraftHeadModel)
    norm = model._norm
    own = norm.prologue.weight if isinstance(norm, NativeNorm) else None
    parts = [model._layers.module, None if isinstance(norm, NativeNorm) else norm, model._join, model._head]
    return weight_bytes(nn.ModuleList(part for part in parts if part is not None)) + (0 if own is None else own.nbytes)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize(("dtype", "quant"), [("auto", "none"), ("auto", "int8"), ("auto", "nf4"), ("float32", "none")])
@pytest.mark.skipif(not may_run_kernels(), reason="needs AVX2")
def test_what_a_loaded_decoder_multiplies_is_read(
    tmp_path: Path, stored: str, dtype: str, quant: Quantization, is_tied: bool
) -> None:
    module = random_toy(0, hidden_size=64, intermediate_size=64, tie_word_embeddings=is_tied)
    folder = save_toy(tmp_path / "toy", model=module.to(getattr(torch, stored)))
    settings = ModelSettings(str(folder), quant, dtype, "cpu")  # type: ignore[arg-type]
    found = resolved(folder, settings)

    loaded = load_weights(found, 320)

    info = loaded.info
    assert bytes_per_pass(found, stored_as(info)) == bytes_multiplied(loaded.model)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(("dtype", "quant"), [("auto", "none"), ("auto", "int8"), ("auto", "nf4"), ("float32", "none")])
@pytest.mark.skipif(not may_run_kernels(), reason="needs AVX2")
def test_of_the_head_of_a_draft_with_many_tokens_the_part_that_is_always_computed_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, quant: Quantization, is_tied: bool
) -> None:
    for name, value in (("MIN_VOCAB", 300), ("NUM_FIRST", 64), ("BLOCK_SIZE", 64)):
        monkeypatch.setattr(shortlist_head, name, value)
    module = random_toy(0, hidden_size=64, intermediate_size=64, tie_word_embeddings=is_tied).bfloat16()
    folder = save_toy(tmp_path / "toy", model=module)
    found = resolved(folder, ModelSettings(str(folder), quant, dtype, "cpu"), role="draft")  # type: ignore[arg-type]

    loaded = load_weights(found, 320)

    info, model = loaded.info, loaded.model
    assert isinstance(model, DecoderModel)
    assert isinstance(model.decoder.head, ShortlistHead)
    first = model.decoder.head.parts[0]
    read = weight_bytes(nn.ModuleList([*model.decoder.layers, model.decoder.norm, first]))
    # Of the other parts, scales and biases are counted.
    other = (320 - 64) * 12
    assert read <= bytes_per_pass(found, stored_as(info)) <= read + other


@pytest.mark.parametrize("num_draft_ids", [None, 50])
@pytest.mark.parametrize(
    ("quant", "of_target"),
    [
        *(("none", "none"), ("nf4", "none"), ("int8", "none")),
        *(("none", "int8"), ("nf4", "int8"), ("int8", "int8")),
        *(("none", "nf4"), ("nf4", "nf4"), ("int8", "nf4")),
    ],
)
@pytest.mark.skipif(not may_run_kernels(), reason="needs AVX2")
@pytest.mark.fast("none-none-*", "nf4-none-None", "int8-int8-50", "nf4-nf4-50")
def test_what_a_loaded_draft_head_multiplies_is_read(
    tmp_path: Path, quant: Quantization, of_target: Quantization, num_draft_ids: int | None
) -> None:
    """A target's head in int8, which one in nf4 has, too, is not copied for a draft in int8 or without a format."""
    module = random_toy(0, hidden_size=64, intermediate_size=64)
    ids = None if num_draft_ids is None else range(num_draft_ids)
    target = ModelSettings(str(save_toy(tmp_path / "target", model=module)), of_target, "float32", "cpu")
    draft = write_draft(tmp_path / "draft", module, kind="features", draft_ids=ids)
    models = load_models(resolve_pair(PairSettings(target, "model", replace(target, name=str(draft), quant=quant))))

    info = models.draft_info
    assert models.pair.draft is not None
    assert info is not None
    assert models.draft is not None
    read = bytes_per_pass(models.pair.draft, stored_as(info), stored_as(models.target_info))
    # Scales and biases of a shared head in int8 are not counted.
    assert read == pytest.approx(bytes_multiplied(models.draft), abs=0 if of_target == "none" else 320 * 8)


# Planned memory


def made(folder: Path, module: Any, stored: str = "bfloat16") -> Path:
    return save_toy(folder, model=module.to(getattr(torch, stored)))


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("quant", ["none", "int8", "nf4"])
@pytest.mark.skipif(not may_run_kernels(), reason="needs AVX2")
def test_the_planned_weights_are_those_of_the_loaded_model(
    tmp_path: Path, quant: Quantization, role: Role, is_tied: bool
) -> None:
    """In nf4, the head of a draft has 4 bits, that of a target 8."""
    module = random_toy(0, hidden_size=64, intermediate_size=64, tie_word_embeddings=is_tied)
    target = ModelSettings(str(made(tmp_path / "toy", module)), quant if role == "target" else "none", device="cpu")
    draft = replace(target, quant=quant) if role == "draft" else None
    pair = resolve_pair(PairSettings(target, "none" if draft is None else "model", draft))

    plan = plan_models(pair.target, pair.draft, 100)[-1]

    models = load_models(pair)
    model, info = (models.target, models.target_info) if draft is None else (models.draft, models.draft_info)
    assert info is not None
    assert (plan.role, plan.quant, plan.dtype) == (role, info.quant, info.dtype)
    assert plan.memory.weights == info.num_bytes - kernel_biases(model)
    needed = needed_bytes(pair.target.config, info.dtype, quant, "cpu", is_draft=role == "draft")
    assert needed == pytest.approx(plan.memory.weights, rel=0.05)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_of_bitsandbytes_leaves_embedding_and_head_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, is_tied: bool
) -> None:
    for module in (placement, formats):
        monkeypatch.setattr(module, "has_int8_matmul", lambda: False)
    model = random_toy(0, hidden_size=64, intermediate_size=64, tie_word_embeddings=is_tied)
    found = resolved(made(tmp_path / "toy", model), ModelSettings("toy", "int8", dtype, "cpu"))  # type: ignore[arg-type]

    info = load_weights(found, 320).info

    needed = needed_bytes(found.config, info.dtype, "int8", "cpu")
    assert (info.quant, info.dtype) == ("int8", dtype)
    assert needed == pytest.approx(info.num_bytes, rel=0.05)


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
def test_the_4_bit_copy_of_a_drafts_tied_head_is_planned_on_cuda(tmp_path: Path, quant: Quantization) -> None:
    """Next to the embedding; a head of its own is replaced, and then less is needed."""
    on_cuda = Placement("cuda:0", False, "bfloat16", quant, ())
    copy = 320 * 64 // 2 + 4 * 320 * 64 // 64
    for is_tied, more in ((True, copy), (False, 0)):
        folder = made(tmp_path / str(is_tied), random_toy(0, hidden_size=64, tie_word_embeddings=is_tied))
        config = resolved(folder, ModelSettings(str(folder))).config
        planned = {role: plan_memory(folder, config, on_cuda, 100, role).weights for role in ("target", "draft")}  # type: ignore[arg-type]
        needed = {is_draft: cuda_bytes(config, "bfloat16", quant, is_draft=is_draft) for is_draft in (False, True)}

        assert planned["draft"] - planned["target"] == needed[True] - needed[False] == more


def kernel_biases(model: Any) -> int:
    """The float32 biases that our kernels have for each output, also where the model has none."""
    return 4 * sum(part.out_features for part in model.module.modules() if isinstance(part, NativeLinear))


QUANTS = ("auto", "none", "int8", "nf4")


# A head over some of the ids is one of the draft's own: the format of the target's does not matter to it.
@pytest.mark.parametrize(
    ("stored", "of_target", "quant", "num_draft_ids"),
    [
        *itertools.product(("float32", "bfloat16"), ("none", "int8", "nf4"), QUANTS, [None]),
        *itertools.product(("float32", "bfloat16"), ("none",), QUANTS, [50]),
        ("float32", "int8", "int8", 50),
        ("float32", "nf4", "auto", 50),
    ],
)
@pytest.mark.skipif(not may_run_kernels(), reason="needs AVX2")
@pytest.mark.fast("float32-none-n*-None", "bfloat16-none-auto-50", "bfloat16-nf4-auto-None")
def test_the_planned_draft_head_is_the_loaded_one(
    tmp_path: Path, stored: str, of_target: Quantization, quant: Quantization, num_draft_ids: int | None
) -> None:
    """So is what is refused. Scales of rows and float32 norms are not planned: less than 5 %."""
    module = random_toy(0, hidden_size=256, intermediate_size=256)
    target = ModelSettings(str(made(tmp_path / "target", module, stored)), of_target, device="cpu")
    ids = None if num_draft_ids is None else range(num_draft_ids)
    draft = write_draft(tmp_path / "draft", module, kind="features", draft_ids=ids)
    pair = resolve_pair(PairSettings(target, "model", replace(target, name=str(draft), quant=quant)))

    try:
        models = load_models(pair)
    except SettingsError as error:
        with pytest.raises(SettingsError, match=error.message):
            plan_models(pair.target, pair.draft, 100)
        return
    plan = plan_models(pair.target, pair.draft, 100)[-1]

    info = models.draft_info
    assert info is not None
    assert (plan.quant, plan.dtype, plan.device) == (info.quant, info.dtype, info.device)
    assert plan.memory.weights == pytest.approx(info.num_bytes, rel=0.05)
