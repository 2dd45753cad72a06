"""Memory and formats are counted by the modules that run, not by the tensors of the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.errors import ModelFileError
from specgen.core.settings import BackendName, BackendSettings, ModelSettings
from specgen.loading.config_check import check_folder
from specgen.loading.module_sizes import with_module_sizes
from specgen.loading.resolved_model import LoadedModel, ModuleSizes
from specgen.loading.weight_sizes import needed_bytes
from specgen.loading.weights import load_weights
from specgen.models.formats import has_float16_matmul, has_int8_matmul
from specgen.models.packing import may_run_kernels
from tests.architectures import build_folder
from tests.loading.builders import edit_json, edit_weights, make_folder, resolved

BLOCK = 128
"""Width of the square blocks with a common scale."""


@pytest.fixture(scope="module", params=["gpt2", "olmoe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a model most of whose weights are in Conv1D, or in fused experts."""
    built = tmp_path_factory.mktemp("wide") / str(request.param)
    build_folder(request.param, built)
    return built


def load(folder: Path, dtype: str, quant: str) -> LoadedModel:
    settings: dict[str, Any] = {"dtype": dtype, "quant": quant, "device": "cpu"}
    found = resolved(folder, ModelSettings(str(folder), **settings))
    return load_weights(found, found.config.vocab_rows or 0)


def estimate(folder: Path, loaded: LoadedModel) -> int:
    config = with_module_sizes(check_folder(folder), folder)
    return needed_bytes(config, loaded.info.dtype, loaded.info.quant, "cpu")


def test_modules_are_counted_by_kind(tmp_path: Path) -> None:
    build_folder("gpt2", tmp_path)

    config = with_module_sizes(check_folder(tmp_path), tmp_path)

    width, inner, layers, positions, vocab = 32, 64, 4, 512, 320
    matrices = 3 * width * width + width * width + 2 * width * inner
    biases = 3 * width + width + inner + width
    norms = 2 * width
    rest = layers * (biases + 2 * norms) + norms + positions * width
    embedding = vocab * width
    assert config.modules == ModuleSizes(0, layers * matrices, embedding, embedding, True, rest)
    assert config.modules.total == config.num_parameters


@pytest.mark.parametrize(("dtype", "quant"), [("float32", "none"), ("float16", "none"), ("float32", "int8")])
@pytest.mark.fault("F146")
@pytest.mark.fast("olmoe-float16-none", "gpt2-float32-int8")
def test_the_memory_of_wide_weights_is_counted(folder: Path, dtype: str, quant: str) -> None:
    if not (has_int8_matmul() if quant == "int8" else has_float16_matmul()):
        pytest.skip("needs packed products")

    loaded = load(folder, dtype, quant)

    assert estimate(folder, loaded) == pytest.approx(loaded.info.num_bytes, rel=0.03)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("backend", ["torch", "transformers"])
@pytest.mark.parametrize(
    ("stored", "quant"),
    [("float32", "none"), ("bfloat16", "none"), ("float16", "none"), ("bfloat16", "int8"), ("bfloat16", "nf4")],
)
@pytest.mark.fast("bfloat16-none-torch-True", "bfloat16-int8-torch-True", "float16-none-torch-True")
def test_the_memory_of_a_large_vocabulary_is_counted(
    tmp_path: Path, stored: str, quant: str, backend: BackendName, is_tied: bool
) -> None:
    if not (has_float16_matmul() and has_int8_matmul() and may_run_kernels()):
        pytest.skip("needs packed products")
    sizes = {"vocab_size": 20_000, "hidden_size": 256, "intermediate_size": 512}
    folder, dtype = make_folder(tmp_path / "wide", tie_word_embeddings=is_tied, **sizes), getattr(torch, stored)
    edit_weights(folder, lambda tensors: tensors.update({name: weight.to(dtype) for name, weight in tensors.items()}))
    edit_json(folder / "config.json", dtype=stored)
    options: dict[str, Any] = {"quant": quant, "device": "cpu", "backend": BackendSettings(backend)}
    model = resolved(folder, ModelSettings(str(folder), **options))

    info = load_weights(model, sizes["vocab_size"]).info

    config = with_module_sizes(model.config, folder)
    assert needed_bytes(config, info.dtype, quant, "cpu") == pytest.approx(info.num_bytes, rel=0.05)


@pytest.mark.parametrize(("dtype", "quant"), [("float16", "none"), ("float32", "int8")])
@pytest.mark.fault("F146")
@pytest.mark.fast("gpt2-float16-none", "olmoe-float32-int8")
def test_the_share_of_the_weights_in_the_format_is_shown(folder: Path, dtype: str, quant: str) -> None:
    if not (has_int8_matmul() if quant == "int8" else has_float16_matmul()):
        pytest.skip("needs packed products")
    modules = with_module_sizes(check_folder(folder), folder).modules
    assert modules is not None
    packed = modules.linear + modules.head
    share = packed / (packed + modules.conv1d + modules.rest)

    remark = load(folder, dtype, quant).info.remark

    chosen = "int8" if quant == "int8" else dtype
    assert [f"{100 * share:.0f} %" in remark, chosen in remark] == [True, True]


def test_nothing_is_said_of_norms_that_stay_wide(tmp_path: Path) -> None:
    if not has_int8_matmul():
        pytest.skip("needs packed products")
    # Its partly rotated heads keep it off specgen's own decoder.
    build_folder("stablelm", tmp_path)

    assert "%" not in load(tmp_path, "float32", "int8").info.remark


@pytest.mark.fault("F147")
def test_weights_that_a_cpu_unpacks_are_counted_unpacked(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, hidden_size=BLOCK, intermediate_size=2 * BLOCK, num_key_value_heads=4)
    edit_weights(folder, pack_fp8)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
    }
    (folder / "config.json").write_text(json.dumps(config))

    loaded = load(folder, "float32", "auto")

    assert needed_bytes(check_folder(folder), "float32", "none", "cuda") < loaded.info.num_bytes / 2
    assert estimate(folder, loaded) == pytest.approx(loaded.info.num_bytes, rel=0.03)
    assert "fp8" in loaded.info.remark


def pack_fp8(tensors: dict[str, torch.Tensor]) -> None:
    """Stores linear layers in 8 bits with a scale per block, as DeepSeek does."""
    for name in [name for name in tensors if "proj" in name]:
        rows, columns = tensors[name].shape
        blocks = tensors[name].reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scale = blocks.abs().amax(dim=(1, 3)) / 448
        packed = (blocks / scale[:, None, :, None]).reshape(rows, columns)
        tensors[name] = packed.to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
@pytest.mark.fault("F147")
def test_weights_of_mlx_are_named(tmp_path: Path, key: str) -> None:
    folder = make_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: {"group_size": 64, "bits": 4}}))

    with pytest.raises(ModelFileError, match="MLX"):
        check_folder(folder)


@pytest.mark.parametrize("value", [{}, {"bits": 4}, {"quant_method": None}])
def test_a_quantization_without_a_method_is_named(tmp_path: Path, value: dict[str, object]) -> None:
    folder = make_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": value}))

    with pytest.raises(ModelFileError, match="quant_method") as caught:
        check_folder(folder)

    assert "damaged" not in caught.value.message
