"""Unpacked GGUF files: weights and spec equal those of transformers' loader bit for bit, or it unpacks the file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from specgen.core.errors import ModelFileError, NumericalError
from specgen.core.settings import ModelSettings
from specgen.loading.config_check import check_folder
from specgen.loading.config_reader import UnsupportedConfig
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.gguf import float_values
from specgen.loading.gguf import unpack as unpack_module
from specgen.loading.gguf.contents import read_contents
from specgen.loading.gguf.convert import convert_gguf
from specgen.loading.gguf.model_config import CHANGES_THE_OUTPUT
from specgen.loading.gguf.model_config import FAMILIES as MODEL_FAMILIES
from specgen.loading.gguf.reader import GGML_TYPES
from specgen.loading.gguf.rotary import carry_base_over
from specgen.loading.gguf.unpack import can_unpack, unpack
from specgen.loading.weights import load_weights
from specgen.models.decoder_model import DecoderModel
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.rotary import inverse_frequencies
from specgen.models.transformers_model import TransformersModel
from tests.loading.builders import fails, resolved
from tests.profiles import thorough_except
from tests.real_models import real_model

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 64, 4, 2, 96, 7
HEAD_SIZES = {
    "llama": 32,
    "qwen2": HIDDEN // HEADS,
    "phi3": HIDDEN // HEADS,
    "qwen3": 128,
    "gemma2": 256,
    "gemma3": 256,
}
"""Of Qwen 3 and Gemma 3, transformers' loader unpacks no others."""
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "AB", *[chr(code) for code in range(33, 93)]]
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0")
FAMILIES = ("llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3")

Shapes = dict[str, tuple[int, ...]]
Edit = Callable[[Any, Shapes], None]
"""Changes a writer and the shapes of the tensors that are written."""


def shapes_of(family: str, num_layers: int = LAYERS) -> Shapes:
    """Returns the tensors of a family in GGUF's names."""
    size = HEAD_SIZES[family]
    shapes: Shapes = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    if "gemma" not in family:
        shapes["output.weight"] = (len(TOKENS), HIDDEN)
    for layer in range(num_layers):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_norm.weight": (HIDDEN,), f"{block}ffn_norm.weight": (HIDDEN,)}
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            shapes[f"{block}attn_{name}.weight"] = (heads * size, HIDDEN)
            if family == "qwen2":
                shapes[f"{block}attn_{name}.bias"] = (heads * size,)
        shapes[f"{block}attn_output.weight"] = (HIDDEN, HEADS * size)
        shapes |= {f"{block}ffn_gate.weight": (INNER, HIDDEN), f"{block}ffn_up.weight": (INNER, HIDDEN)}
        if family == "phi3":
            for name in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
                del shapes[f"{block}{name}.weight"]
            shapes[f"{block}attn_qkv.weight"] = ((HEADS + 2 * KV_HEADS) * size, HIDDEN)
            shapes[f"{block}ffn_up.weight"] = (2 * INNER, HIDDEN)
        shapes[f"{block}ffn_down.weight"] = (HIDDEN, INNER)
        if family in ("qwen3", "gemma3"):
            shapes |= {f"{block}attn_q_norm.weight": (size,), f"{block}attn_k_norm.weight": (size,)}
        if "gemma" in family:
            shapes |= {f"{block}post_attention_norm.weight": (HIDDEN,), f"{block}post_ffw_norm.weight": (HIDDEN,)}
    return shapes


def write(
    path: Path,
    family: str,
    *,
    types: tuple[str, ...] = TYPES,
    edit: Edit | None = None,
    nan: str = "",
    num_layers: int = LAYERS,
    changes: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Path:
    """Writes a GGUF file of a family with random weights, in different types."""
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(num_layers)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50_000.0)
    if family not in ("qwen2", "phi3"):
        writer.add_key_length(HEAD_SIZES[family])
        writer.add_value_length(HEAD_SIZES[family])
    if family == "llama":
        writer.add_rope_dimension_count(HEAD_SIZES[family])
        writer.add_vocab_size(len(TOKENS))
    if "gemma" in family:
        writer.add_sliding_window(24)
    if family == "phi3":  # as transformers' class, whose default id is beyond this table
        writer.add_pad_token_id(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = shapes_of(family, num_layers)
    if edit is not None:
        edit(writer, shapes)
    random = np.random.default_rng(0)
    for index, (name, shape) in enumerate(shapes.items()):
        values = random.standard_normal(shape).astype(np.float32)
        if name == nan:
            values[...] = np.nan
        values = (changes or {}).get(name, lambda same: same)(values)
        kind = gguf.GGMLQuantizationType[types[index % len(types)] if len(shape) > 1 else "F32"]
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def library_model(path: Path) -> Any:
    """Returns transformers' model of a GGUF file."""
    return (
        transformers.AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.bfloat16,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        .eval()
        .requires_grad_(False)
    )


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def spec_of(config: Any) -> DecoderSpec:
    values = json.loads(json.dumps({**config.to_dict(), "quantization_config": None, "dtype": "bfloat16"}))
    del values["quantization_config"]
    return decoder_spec(values)


def assert_equals_the_library(path: Path, folder: Path) -> None:
    spec = unpack(path, folder)
    model = library_model(path)
    expected = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    found = tensors_of(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert decoder_spec(json.loads((folder / "config.json").read_text())) == spec
    assert spec == spec_of(model.config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast("qwen2")
def test_weights_and_spec_equal_the_librarys_bit_for_bit(tmp_path: Path, family: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    assert_equals_the_library(write(tmp_path / "tiny.gguf", family), folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_file_without_a_head_has_tied_embeddings(tmp_path: Path, family: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    edit: Edit = lambda _, shapes: shapes.pop("output.weight")  # noqa: E731
    path = write(tmp_path / "tiny.gguf", family, edit=edit, num_layers=1)

    assert_equals_the_library(path, folder)
    assert check_folder(folder).decoder == unpack(path, folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast("qwen2", "gemma2")
def test_a_converted_file_has_the_logits_of_the_librarys_model(tmp_path: Path, family: str) -> None:
    # Each weight in each type is compared above. Gemma 3 repeats its kinds of layers after six.
    path = write(tmp_path / "tiny.gguf", family, types=("Q8_0",), num_layers=LAYERS if family == "gemma3" else 2)
    folder = convert_gguf(path)
    loaded = load_weights(resolved(folder, ModelSettings("tiny", dtype="float32"), from_gguf=True), len(TOKENS))
    ids = torch.randint(3, len(TOKENS), (50,), generator=torch.Generator().manual_seed(0)).tolist()

    expected = library_model(path).float()(torch.tensor([ids])).logits[0]

    assert type(loaded.model) is DecoderModel
    assert relative_error(loaded.model.logits(ids, 50), expected) <= 1e-5


def test_a_tensor_is_unpacked_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float_values, "PIECE_VALUES", 256)
    monkeypatch.setattr(unpack_module, "JOB_VALUES", 1024)
    folder = tmp_path / "folder"
    folder.mkdir()

    assert_equals_the_library(write(tmp_path / "tiny.gguf", "llama", num_layers=2), folder)


def test_pieces_hold_whole_blocks_of_all_types() -> None:
    assert {float_values.PIECE_VALUES % block for _, block, _ in GGML_TYPES.values()} == {0}


def _partial(writer: Any, _: Shapes) -> None:
    writer.add_uint32("qwen3.rope.dimension_count", HEAD_SIZES["qwen3"] // 2)


UNSUPPORTED: dict[str, tuple[str, Edit, str]] = {
    "an expert": ("qwen3", lambda writer, _: writer.add_expert_count(4), "expert_count"),
    "partial rotary embedding": ("qwen3", _partial, "partial_rotary_factor"),
    "bias": (
        "llama",
        lambda _, shapes: shapes.update({"blk.0.attn_q.bias": (128,)}),
        "blk.0.attn_q.bias",
    ),
    "no embedding": ("llama", lambda _, shapes: shapes.pop("token_embd.weight"), "token_embd.weight"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_file_that_a_spec_does_not_describe_is_left_to_transformers(tmp_path: Path, name: str) -> None:
    family, edit, part = UNSUPPORTED[name]
    path = write(tmp_path / "tiny.gguf", family, edit=edit)

    with pytest.raises(UnsupportedConfig, match=part):
        unpack(path, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault("F141")
def test_transformers_conversion_keeps_the_base_of_the_rotary_embedding(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "qwen3", edit=_partial)
    config = transformers.Starcoder2Config()

    carry_base_over(read_contents(path), config)

    assert config.rope_parameters["rope_theta"] == 50_000.0
    assert json.loads(config.to_json_string())["rope_parameters"]["rope_theta"] == 50_000.0


@pytest.mark.fault("F141")
def test_transformers_conversion_keeps_the_rotated_part_of_a_head(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "qwen3", edit=_partial)
    config = transformers.StableLmConfig(hidden_size=64, num_attention_heads=2)
    size = next(
        field.contents()
        for name, field in gguf.GGUFReader(path).fields.items()
        if name.endswith("rope.dimension_count")
    )

    carry_base_over(read_contents(path), config)

    assert config.rope_parameters["partial_rotary_factor"] == size / 32


def test_a_file_left_to_transformers_has_its_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "qwen3", edit=_partial, num_layers=2)
    folder = convert_gguf(path)
    loaded = load_weights(resolved(folder, ModelSettings("tiny", dtype="float32"), from_gguf=True), len(TOKENS))

    expected = library_model(path).float()(torch.tensor([[3, 4, 5]])).logits[0]

    assert isinstance(loaded.model, DecoderModel | TransformersModel)
    assert relative_error(loaded.model.logits([3, 4, 5], 3), expected) <= 1e-5


CHANGED = {"attention.sliding_window_pattern": 3, "expert_count": 4}
"""Values that real files have; other keys get a number."""


@pytest.mark.parametrize("suffix", CHANGES_THE_OUTPUT)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast("llama-*", "gemma3-*")
def test_a_key_that_changes_the_output_is_read_or_leaves_the_file_to_transformers(
    tmp_path: Path, family: str, suffix: str
) -> None:
    key, value = f"{family}.{suffix}", CHANGED.get(suffix, 2.5)
    is_read = suffix in MODEL_FAMILIES[family].keys
    kind = {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}

    def edit(writer: Any, _: Shapes) -> None:
        if not is_read:
            writer.add_key_value(key, value, kind[type(value)])

    path = write(tmp_path / "tiny.gguf", family, edit=edit, num_layers=1)
    if is_read:
        assert unpack(path, tmp_path)  # other tests compare the values
        return
    with pytest.raises(UnsupportedConfig, match=suffix):
        unpack(path, tmp_path)


Keys = dict[str, float | str]
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
SCALED: dict[str, tuple[Keys, bool, dict[str, Any]]] = {
    "linear": ({"type": "linear", "factor": 4.0}, False, {"rope_type": "linear", "factor": 4.0}),
    "linear without a type": ({"factor": 4.0}, False, {"rope_type": "linear", "factor": 4.0}),
    "none": ({"type": "none", "factor": 4.0}, False, {}),
    "yarn": ({"type": "yarn", "factor": 4.0, "original_context_length": 32}, False, {"rope_type": "yarn", **YARN}),
    "yarn with betas": (
        {"type": "yarn", "factor": 4.0, "original_context_length": 32, "yarn_beta_fast": 16.0, "attn_factor": 2.0},
        False,
        {"rope_type": "yarn", **YARN, "beta_fast": 16.0, "attention_factor": 2 * (0.1 * math.log(4) + 1)},
    ),
    "frequencies": ({}, True, {"rope_type": "longrope", "attention_factor": 1.0}),
    "frequencies and linear": ({"factor": 2.0}, True, {"rope_type": "longrope", "attention_factor": 1.0}),
}


@pytest.mark.fault("F141")
@pytest.mark.parametrize("name", SCALED)
def test_a_scaled_rotary_embedding_is_carried_over(tmp_path: Path, name: str) -> None:
    keys, has_factors, rule = SCALED[name]

    def edit(writer: Any, shapes: Shapes) -> None:
        for key, value in keys.items():
            if key == "original_context_length":
                writer.add_uint32(f"llama.rope.scaling.{key}", value)
            elif isinstance(value, str):
                writer.add_string(f"llama.rope.scaling.{key}", value)
            else:
                writer.add_float32(f"llama.rope.scaling.{key}", value)
        if has_factors:
            shapes["rope_freqs.weight"] = (HEAD_SIZES["llama"] // 2,)

    positive = {"rope_freqs.weight": lambda values: np.abs(values) + 1}
    path = write(tmp_path / "tiny.gguf", "llama", edit=edit, num_layers=1, changes=positive)
    spec = unpack(path, tmp_path)

    rotary = spec.layers[0].rotary
    assert rotary is not None
    found = json.loads((tmp_path / "config.json").read_text()).get("rope_scaling", {})
    assert found.items() >= rule.items()
    assert bool(found) == bool(rule)
    if has_factors:
        stored = next(t for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight").data
        expected = [float(value) * float(keys.get("factor", 1.0)) for value in stored]
        assert found["short_factor"] == found["long_factor"] == expected
        assert rotary.factors == tuple(expected)
    frequencies, factor = inverse_frequencies(rotary)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    assert torch.allclose(frequencies, theirs.inv_freq, rtol=1e-6)
    assert factor == pytest.approx(theirs.attention_scaling)


@pytest.mark.fault("F141")
@pytest.mark.parametrize(
    "edit",
    [
        lambda writer, _: writer.add_string("qwen3.rope.scaling.type", "longrope"),
        lambda writer, _: writer.add_float32("qwen3.rope.scaling.yarn_log_multiplier", 0.1),
        lambda _, shapes: shapes.update({"rope_factors_long.weight": (64,)}),
        lambda writer, _: (writer.add_float32("qwen3.rope.scaling.factor", 2.0), writer.add_expert_count(4)),
    ],
)
def test_a_scaling_that_would_be_lost_is_refused(tmp_path: Path, edit: Edit) -> None:
    path = write(tmp_path / "tiny.gguf", "qwen3", edit=edit, num_layers=1)

    fails(ModelFileError, lambda: convert_gguf(path), str(path))


def test_gemma_3_scales_the_rotary_embedding_of_layers_without_a_window(tmp_path: Path) -> None:
    def edit(writer: Any, _: Shapes) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    spec = unpack(write(tmp_path / "tiny.gguf", "gemma3", edit=edit), tmp_path)

    scaled = [
        (layer.window is None, layer.rotary.scaling, layer.rotary.parameters) for layer in spec.layers if layer.rotary
    ]
    assert set(scaled) == {(False, "default", ()), (True, "linear", (("factor", 8.0),))}


@pytest.mark.parametrize(("family", "largest"), thorough_except([("gemma2", 46)], [("gemma2", 46), ("gemma3", 62)]))
@pytest.mark.thorough
def test_the_largest_gemma_has_a_query_scale_of_its_own(tmp_path: Path, family: str, largest: int) -> None:
    for num_layers, scalar in ((2, HEAD_SIZES[family]), (largest, HIDDEN // HEADS)):
        path = write(tmp_path / "tiny.gguf", family, types=("F16",), num_layers=num_layers)

        assert unpack(path, tmp_path).attention_scale == scalar**-0.5


@pytest.mark.fault("F157")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
def test_heads_without_a_size_divide_the_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setitem(HEAD_SIZES, family, HIDDEN // HEADS)

    def edit(writer: Any, _: Shapes) -> None:
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            writer.kv_data[0].pop(f"{family}.{name}", None)

    assert unpack(write(tmp_path / "tiny.gguf", family, edit=edit), tmp_path).head_size == HIDDEN // HEADS


def test_the_caps_and_windows_of_gemma_2_are_read(tmp_path: Path) -> None:
    def edit(writer: Any, _: Shapes) -> None:
        writer.add_attn_logit_softcapping(40.0)
        writer.add_final_logit_softcapping(20.0)

    spec = unpack(write(tmp_path / "tiny.gguf", "gemma2", edit=edit), tmp_path)

    # transformers' loader drops both and takes its defaults.
    assert (spec.attention_soft_cap, spec.logits_soft_cap) == (40.0, 20.0)
    assert [layer.window for layer in spec.layers] == [24, None] * 3 + [24]


def test_the_window_of_phi_3_is_read(tmp_path: Path) -> None:
    spec = unpack(write(tmp_path / "tiny.gguf", "phi3", edit=lambda writer, _: writer.add_sliding_window(24)), tmp_path)

    assert {layer.window for layer in spec.layers} == {24}


@pytest.mark.thorough
def test_the_largest_gemma_3_is_refused_rather_than_left_to_transformers(tmp_path: Path) -> None:
    def edit(writer: Any, _: Shapes) -> None:
        writer.add_float32("gemma3.logit_scale", 2.0)

    path = write(tmp_path / "tiny.gguf", "gemma3", types=("F16",), num_layers=62, edit=edit)

    fails(ModelFileError, lambda: convert_gguf(path), str(path), "logit_scale")


@pytest.mark.parametrize("architecture", ["starcoder2", "qwen2moe", "mamba", ""])
def test_other_architectures_are_not_unpacked_here(architecture: str) -> None:
    assert not can_unpack(architecture)


def test_a_missing_tensor_names_file_and_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", "qwen3", edit=lambda _, shapes: shapes.pop("blk.2.attn_k_norm.weight"))

    fails(ModelFileError, lambda: unpack(path, tmp_path), str(path), "model.layers.2.self_attn.k_norm.weight")


def test_a_misshapen_tensor_names_file_and_tensor(tmp_path: Path) -> None:
    path = write(
        tmp_path / "tiny.gguf", "qwen3", edit=lambda _, shapes: shapes.update({"blk.2.attn_norm.weight": (32,)})
    )

    fails(ModelFileError, lambda: unpack(path, tmp_path), str(path), "blk.2.attn_norm.weight", "(32,)")


@pytest.mark.parametrize("name", ["blk.3.attn_norm.weight", "token_embd.weight", "output.weight"])
@pytest.mark.fault("F19")
def test_nan_in_a_norm_or_an_embedding_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "tiny.gguf", "qwen3", types=("F32",), nan=name)

    fails(NumericalError, lambda: unpack(path, tmp_path), str(path), name)


@pytest.mark.real
@pytest.mark.timeout(300)
def test_a_real_file_equals_the_librarys_bit_for_bit(tmp_path: Path) -> None:
    assert_equals_the_library(real_model("smollm2-135m-instruct.gguf"), tmp_path)
