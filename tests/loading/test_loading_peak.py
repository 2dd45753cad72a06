"""Loading takes little more memory than the weights: measured as the peak of a child that does nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specgen.loading.decoder_families import decoder_spec
from specgen.models.formats import has_float16_matmul, has_int8_matmul
from specgen.models.tensor_names import tensor_shapes
from tests.cli.children import run_child

CONFIG = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 16384,
    "tie_word_embeddings": False,
}
MAX_RATIO = 1.25
LIBRARY_BYTES = 48 * 2**20
"""What the libraries' functions take for a block of rows, however large the model is. Where Triton is installed,
bitsandbytes in nf4 takes up to 38 MiB."""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = tensor_shapes(decoder_spec(CONFIG))
    tensors = {name: torch.randn(shape).mul_(0.05).bfloat16() for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of a process's memory")
@pytest.mark.parametrize(
    ("dtype", "quant", "packed"),
    [
        ("bfloat16", "none", ""),
        ("float32", "none", ""),
        ("float32", "none", "float16"),
        ("float32", "int8", "int8"),
        ("bfloat16", "int8", ""),
        ("bfloat16", "nf4", ""),
        ("bfloat16", "fp4", ""),
    ],
)
def test_loading_takes_at_most_a_quarter_more_than_the_weights(
    large_folder: Path, dtype: str, quant: str, packed: str
) -> None:
    if packed and not (has_float16_matmul() and has_int8_matmul()):
        pytest.skip("needs FBGEMM's kernels")
    ended = run_child(str(large_folder), dtype, quant, packed, module="tests.loading.peak_child")

    assert ended.code == 0, ended.err
    rise, weights = json.loads(ended.out)

    assert 0.9 * weights < rise < MAX_RATIO * weights + LIBRARY_BYTES
