"""Multi-token-prediction heads in a pair: found, refused by name, reported; the text is always the target's own."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specgen.cli.bench.benchmark import draft_pairs
from specgen.cli.bench.inputs import parse_drafts
from specgen.core.draft_name import DraftName
from specgen.core.errors import ModelFileError, PairError, SettingsError
from specgen.core.progress import SILENT
from specgen.core.settings import DecodeSettings, ModelSettings, PairSettings, SamplingSettings
from specgen.doctor.draft_candidates import find_candidates
from specgen.doctor.examine import examine_pair
from specgen.loading.module_sizes import dense_layers
from specgen.models.cached_model import CachedModel
from specgen.models.draft_head import DraftHeadModel
from specgen.models.formats import has_float16_matmul, has_int8_matmul
from specgen.models.quantized import has_nf4_kernel
from specgen.render.jsonl import stats_document
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import Pair, resolve_pair
from tests.cli.chat.scenes import converse, reply
from tests.loading.builders import fails
from tests.mtp import AS_A_LAYER, KINDS, save_with_mtp
from tests.profiles import thorough_except
from tests.toys import draft_named_by, save_toy

PROMPT = [17, 40, 17, 40, 9, 88, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("mtp")

    @cache
    def saved(kind: str, **options: Any) -> Path:
        return save_with_mtp(root / f"{kind}{options}".replace(" ", ""), kind, **options)

    return saved


def settings(path: Path | str, **changes: Any) -> ModelSettings:
    return replace(ModelSettings(str(path), "none", "float32", "cpu"), **changes)


def pair_of(path: Path, draft: str = "mtp", target: Mapping[str, Any] | None = None, **changes: Any) -> Pair:
    own = settings(path, **(target or {}))
    return resolve_pair(
        PairSettings(own).with_draft(DraftName(draft), replace(ModelSettings("", "none", device="cpu"), **changes))
    )


def run(models: LoadedModels, prompt: list[int] = PROMPT, **options: Any) -> Generation:
    limits = DecodeSettings(options.pop("max_new_tokens", 16), options.pop("num_draft_tokens", 4), strict=True)
    sampling = options.pop("sampling", SamplingSettings())
    generation = Generation(models, Request(prompt, replace(limits, **options), sampling))
    for _ in generation:
        pass
    return generation


# --- The text ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_turns_and_retries_are_the_targets_own(kind: str, folder: Any) -> None:
    models, alone = load_models(pair_of(folder(kind))), load_models(pair_of(folder(kind), "none"))
    text = run(alone, max_new_tokens=10).token_ids
    prompts = [PROMPT, [*PROMPT, *text, 5, 6], [*PROMPT, *text[:5], 7, 8], PROMPT, [3]]

    for prompt in prompts:
        generation = run(models, prompt, max_new_tokens=10)
        own = text if prompt is PROMPT else run(alone, prompt, max_new_tokens=10).token_ids
        assert generation.token_ids == own
        assert generation.counts.num_rejected > 0


@pytest.mark.parametrize("kind", ["Qwen3_5", "Glm4Moe"])
@pytest.mark.fast("Glm4Moe")
def test_a_head_that_knows_the_target_is_accepted_at_each_depth(kind: str, folder: Any) -> None:
    models, alone = (load_models(pair_of(folder(kind, is_oracle=True), draft)) for draft in ("mtp", "none"))

    generation = run(models, max_new_tokens=21)

    assert generation.token_ids == run(alone, max_new_tokens=21).token_ids
    assert generation.counts.acceptance_by_position == [1.0] * 4
    assert stats_document(generation.counts)["conditional_per_position_acceptance_rate"] == [1.0] * 4


@pytest.mark.thorough
def test_same_text_with_and_without_it(folder: Any) -> None:
    sampling = SamplingSettings(temperature=0.9, seed=4, same_text=True)
    alone = load_models(pair_of(folder("Qwen3_5"), "none"))

    drafted = run(load_models(pair_of(folder("Qwen3_5"))), sampling=sampling)

    assert drafted.token_ids == run(alone, sampling=sampling).token_ids


def test_a_chat_keeps_its_caches_between_turns(folder: Any) -> None:
    conversation = converse(load_models(pair_of(folder("Qwen3_5"))))
    draft = conversation.models.draft
    assert draft is not None
    reply(conversation, "hello")
    held = draft.length
    reply(conversation, "and now?")

    assert draft.length > held > 0


@pytest.mark.thorough
def test_a_head_added_in_a_chat_drafts_after_the_next_message(folder: Any) -> None:
    models = load_models(pair_of(folder("Qwen3_5"), "none"))
    first = run(models)
    models.replace_draft(models.pair.with_draft(*draft_named_by(ModelSettings("mtp", "none", device="cpu"))))
    text = [*PROMPT, *first.token_ids, 7, 8]

    second = run(models, text)

    assert second.token_ids == run(load_models(pair_of(folder("Qwen3_5"), "none")), text).token_ids
    assert second.counts.num_drafted > 0
    assert isinstance(models.draft, DraftHeadModel)
    assert models.draft.start > len(PROMPT)


# --- Weight formats ---------------------------------------------------------------------------------------------------

FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"quant": "int8"},
    "nf4": {"quant": "nf4", "dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize(
    ("kind", "name", "is_tied"),
    thorough_except(
        [*(("Qwen3_5", name, False) for name in FORMATS), ("Qwen3_5", "int8", True), ("Qwen3_5Moe", "int8", False)],
        [
            *(("Qwen3_5", *how) for how in itertools.product(FORMATS, [False, True])),
            # Experts are read in the format of the other layers.
            *(("Qwen3_5Moe", name, False) for name in ("int8", "nf4")),
        ],
    ),
)
@pytest.mark.fast("*-bfloat16-False")
def test_it_runs_in_the_format_of_its_target(kind: str, name: str, is_tied: bool, folder: Any) -> None:
    if (name == "int8" and not has_int8_matmul()) or (name == "float16" and not has_float16_matmul()):
        pytest.skip("this CPU lacks the products")
    # The 4-bit kernel for CPUs needs such widths.
    widths = {"hidden_size": 64, "intermediate_size": 128} if name == "nf4" else {}
    path = folder(kind, is_oracle=True, tie_word_embeddings=is_tied, **widths)
    pair = resolve_pair(PairSettings(settings(path, **FORMATS[name]), "model", ModelSettings("mtp", device="cpu")))
    models = load_models(pair)
    assert models.draft_info is not None

    generation = run(models)

    # Where the arithmetic is float32, int8 is the fastest.
    fastest = {"nf4": "nf4", "int8": "int8", "float16": "int8"}.get(name, "none")
    assert models.draft_info.quant in ("none", fastest)
    assert models.target_info.quant == FORMATS[name].get("quant", "none")
    assert generation.counts.acceptance_rate > 0.3


@pytest.mark.skipif(not has_nf4_kernel(torch.device("cpu")), reason="needs a CPU with AVX512-BF16")
def test_layers_that_the_4_bit_kernel_cannot_run_are_named(folder: Any) -> None:
    path = folder("Qwen3_5", is_oracle=True, hidden_size=64, intermediate_size=128)

    info = load_models(pair_of(path, target={"quant": "nf4", "dtype": "bfloat16"})).target_info

    assert all(kind in info.remark for kind in ("in_proj_a", "in_proj_b", "nf4", "bfloat16"))
    assert "q_proj" not in info.remark


def test_layers_of_whole_blocks_are_all_quantized(folder: Any) -> None:
    gates = {"in_proj_a", "in_proj_b"}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "linear_value_head_dim": 16}

    unfit = dense_layers(folder("Qwen3_5", **sizes))
    fit = dense_layers(folder("Qwen3_5", **sizes, linear_num_value_heads=32, linear_num_key_heads=16))

    assert {name.rpartition(".")[2] for name in unfit} == {*gates, "lm_head"}
    assert fit == []


@pytest.mark.skipif(not has_int8_matmul(), reason="needs FBGEMM's kernels")
def test_it_has_a_format_of_its_own(folder: Any) -> None:
    path = folder("Qwen3_5", is_oracle=True)

    plain, packed = (load_models(pair_of(path, quant=quant)) for quant in ("none", "int8"))

    assert plain.draft_info is not None
    assert packed.draft_info is not None
    assert (plain.draft_info.quant, packed.draft_info.quant) == ("none", "int8")
    assert run(packed).token_ids == run(plain).token_ids
    assert run(packed).counts.acceptance_rate > 0.3  # a random head would have 0.003


# --- The length of its drafts -----------------------------------------------------------------------------------------


def seconds_of(models: LoadedModels, monkeypatch: pytest.MonkeyPatch) -> float:
    """Returns what an answer takes if a pass over n tokens takes 1 + (n - 1) / 10, and one of the head 0.2."""
    now = 0.0
    target_forward, head_forward = CachedModel._forward, DraftHeadModel._forward

    def timed_target(model: Any, new: Tensor, num_last: int) -> Tensor:
        nonlocal now
        now += 1 + (new.shape[0] - 1) / 10
        return target_forward(model, new, num_last)

    def timed_head(model: Any, new: Tensor, features: Any) -> Tensor:
        nonlocal now
        now += 0.2
        return head_forward(model, new, features)

    monkeypatch.setattr(CachedModel, "_forward", timed_target)
    monkeypatch.setattr(DraftHeadModel, "_forward", timed_head)
    request = Request(PROMPT, DecodeSettings(300, 8, schedule="auto"), SamplingSettings())
    generation = Generation(models, request)
    generation.clock = lambda: now
    for _ in generation:
        pass
    monkeypatch.undo()
    return now


@pytest.mark.thorough
def test_an_automatic_length_leaves_off_a_head_that_loses(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = seconds_of(load_models(pair_of(folder("Qwen3_5"), "none")), monkeypatch)

    with_head = seconds_of(load_models(pair_of(folder("Qwen3_5"))), monkeypatch)

    assert with_head < 1.03 * alone  # the trials cost 1.8 %


@pytest.mark.thorough
def test_an_automatic_length_applies_a_good_head_several_times(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("Qwen3_5", is_oracle=True)

    with_head = seconds_of(load_models(pair_of(path)), monkeypatch)

    # One application a round would give 2 tokens for 1.3: 1.54 times as fast as the target alone.
    assert with_head < 300 / 2


# --- Found and reported -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_auto_finds_it(kind: str, folder: Any) -> None:
    pair = pair_of(folder(kind), "auto")

    assert pair.settings.drafter == "model+lookup"
    assert pair.draft is not None
    assert (pair.draft.name, pair.draft.format) == ("mtp", "mtp")


@pytest.mark.parametrize("kind", ["Qwen3_5", "Glm4Moe"])
def test_auto_is_lookup_if_the_head_is_incomplete(kind: str, tmp_path: Path) -> None:
    pair = pair_of(save_with_mtp(tmp_path, kind, change=lambda it: without(it, "hidden.weight", "hnorm")), "auto")

    assert (pair.settings.drafter, pair.draft) == ("lookup", None)


@pytest.mark.parametrize("value", [None, [2]])
@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size"])
def test_auto_is_lookup_if_the_config_lacks_a_size(key: str, value: object, tmp_path: Path) -> None:
    path = save_with_mtp(tmp_path, "Glm4Moe")
    config = json.loads((path / "config.json").read_text())
    del config[key]
    (path / "config.json").write_text(json.dumps(config if value is None else {**config, key: value}))

    assert pair_of(path, "auto").draft is None


def test_a_layer_with_a_number_of_thousands_of_digits_is_no_part_of_a_head(tmp_path: Path) -> None:
    name = f"model.layers.{'9' * 5000}.mlp.up_proj.weight"
    path = save_with_mtp(tmp_path, "Glm4Moe", change=lambda tensors: {**tensors, name: torch.zeros(2)})

    assert getattr(pair_of(path, "auto").draft, "format", None) == "mtp"


@pytest.mark.thorough
def test_it_combines_with_lookup(folder: Any) -> None:
    pair = pair_of(folder("Qwen3_5"), "mtp+lookup")
    alone = load_models(pair_of(folder("Qwen3_5"), "none"))

    assert pair.settings.drafter == "model+lookup"
    assert run(load_models(pair)).token_ids == run(alone).token_ids


def test_the_report_describes_it(folder: Any) -> None:
    info = run(load_models(pair_of(folder("Qwen3_5")))).report().info

    assert info.draft is not None
    assert (info.drafter, info.draft.name, info.draft.num_parameters) == ("model", "mtp", 12464)
    assert re.findall(r"\d+|features", info.draft.remark) == ["1", "features"]
    assert 0 < info.draft.num_bytes < info.target.num_bytes


@pytest.mark.parametrize("kind", AS_A_LAYER)
def test_no_notice_says_that_its_tensors_are_left_out(kind: str, folder: Any) -> None:
    assert load_models(pair_of(folder(kind))).notices == ()


def test_a_head_of_several_layers_uses_the_first(tmp_path: Path) -> None:
    def doubled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        further = {name.replace("layers.2.", "layers.3."): value.clone() for name, value in tensors.items()}
        return {**further, **tensors}

    path = save_with_mtp(tmp_path, "Glm4Moe", change=doubled)

    models = load_models(pair_of(path))

    assert models.draft_info is not None
    assert models.draft_info.remark.startswith("1 layer of 2 ")


def test_doctor_plans_its_memory_without_reading_it(folder: Any) -> None:
    report = examine_pair(pair_of(folder("DeepseekV3")), 512)

    target, draft = report.models
    assert (draft.role, draft.name, draft.dtype, draft.quant) == ("draft", "mtp", "float32", "none")
    assert 0 < draft.memory.weights < target.memory.weights
    assert draft.memory.cache > 0


def test_it_is_a_candidate_among_drafts(folder: Any) -> None:
    target = pair_of(folder("Qwen3_5"), "none").target
    target = replace(target, settings=replace(target.settings, offline=True))

    candidates, _ = find_candidates(target, [])

    assert ("mtp", "draft head") in [(one.draft, one.source) for one in candidates]


def test_bench_takes_its_name(folder: Any) -> None:
    baseline = pair_of(folder("Qwen3_5"), "none")

    pairs = draft_pairs(
        baseline,
        parse_drafts([DraftName("mtp"), DraftName("mtp:int8+lookup")], "none"),
        ModelSettings("", device="cpu"),
        SILENT,
    )

    assert list(pairs) == ["mtp:none", "mtp:int8+lookup"]
    assert [pair.draft.settings.quant for pair in pairs.values() if pair.draft is not None] == ["none", "int8"]


# --- Refused ----------------------------------------------------------------------------------------------------------


def without(tensors: dict[str, Tensor], *endings: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not any(end in name for end in endings)}


MISSING = (
    ("Qwen3_5", "mtp.fc.weight"),
    ("Qwen3_5", "mtp.norm.weight"),
    ("Qwen3_5", "mtp.layers.0.self_attn.q_norm.weight"),
    ("Glm4Moe", "model.layers.2.hnorm.weight"),
    ("Glm4Moe", "model.layers.2.shared_head.norm.weight"),
    ("DeepseekV3", "model.layers.2.self_attn.kv_b_proj.weight"),
)


@pytest.mark.parametrize(("kind", "name"), MISSING)
def test_a_missing_tensor_is_named_before_weights_are_read(kind: str, name: str, tmp_path: Path) -> None:
    path = save_with_mtp(tmp_path, kind, change=lambda tensors: without(tensors, name))

    fails(ModelFileError, lambda: pair_of(path), name)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    path = save_with_mtp(tmp_path, "Glm4Moe", change=lambda tensors: without(tensors, "layers.2.mlp.experts.3.up"))

    fails(ModelFileError, lambda: load_models(pair_of(path)), "mlp.experts.3.up_proj.weight")


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "fewer rows": lambda value: value[:-1].contiguous(),
    "fewer columns": lambda value: value[:, :-1].contiguous(),
    "flat": lambda value: value.flatten(),
    "a number": lambda value: value[0, 0].clone(),
}
PRODUCTS = (
    ("Qwen3_5", "mtp.fc.weight"),
    ("Qwen3_5", "mtp.layers.0.mlp.up_proj.weight"),
    ("Glm4Moe", "model.layers.2.mlp.experts.1.up_proj.weight"),
)


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("kind", "name"), PRODUCTS)
@pytest.mark.fast("*mtp.fc*", "*a number")
def test_a_wrong_shape_is_named(kind: str, name: str, change: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    path = save_with_mtp(tmp_path, kind, change=lambda tensors: {**tensors, name: change(tensors[name])})

    fails(ModelFileError, lambda: load_models(pair_of(path)), name)


def test_experts_that_have_the_right_size_together_only_are_named(tmp_path: Path) -> None:
    stem = "model.layers.2.mlp.experts.1."
    gate, up = f"{stem}gate_proj.weight", f"{stem}up_proj.weight"

    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        both = torch.cat([tensors[gate], tensors[up]])
        num_rows = tensors[gate].shape[0] + 1
        return {**tensors, gate: both[:num_rows].clone(), up: both[num_rows:].clone()}

    path = save_with_mtp(tmp_path, "Glm4Moe", change=moved)

    fails(ModelFileError, lambda: load_models(pair_of(path)), gate, up)


def test_a_quantized_head_is_refused_with_its_type(tmp_path: Path) -> None:
    name = "mtp.layers.0.mlp.up_proj.weight"
    path = save_with_mtp(tmp_path, "Qwen3_5", change=lambda it: {**it, name: it[name].to(torch.uint8)})

    fails(ModelFileError, lambda: pair_of(path), name, "U8")


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    path = save_with_mtp(tmp_path, "Qwen3_5", change=lambda tensors: without(tensors, "mtp."))

    error = fails(PairError, lambda: pair_of(path), "MTP", "--draft lookup")

    assert error.exit_code == 4


@pytest.mark.parametrize(("name", "value"), [("quant", "fp4"), ("device", "cuda:0")])
def test_it_uses_its_targets_device_and_type(name: str, value: str, folder: Any) -> None:
    fails(SettingsError, lambda: pair_of(folder("Qwen3_5"), **{name: value}), f"--draft-{name} {value}")


def test_a_target_of_specgens_own_decoder_has_none(tmp_path: Path) -> None:
    fails(PairError, lambda: pair_of(save_toy(tmp_path)), "llama")
