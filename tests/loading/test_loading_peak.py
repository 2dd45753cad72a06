"""Loading takes little more memory than the weights: measured as the peak of a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specgen.loading.decoder_families import decoder_spec
from specgen.models.formats import has_float16_matmul, has_int8_matmul
from specgen.models.tensor_names import tensor_shapes

CONFIG = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
}
MAX_RATIO = 1.25
LIBRARY_BYTES = 48 * 2**20
"""What the libraries' functions take for a block of rows, however large the model is. Where Triton is installed,
bitsandbytes in nf4 takes up to 38 MiB."""
CHILD = """
import json, re, sys
from pathlib import Path
import torch
from specgen.loading.config_check import check_folder
from specgen.loading.decoder_weights import load_decoder, weight_bytes
from specgen.loading.placement import Placement
from specgen.models.formats import Int8Linear
from specgen.models.packing import packed_linear
from specgen.models.quantized import quantized_linear

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

folder, dtype, quant, packed = Path(sys.argv[1]), *sys.argv[2:]
torch.set_num_threads(4)
with torch.inference_mode():  # what the libraries take when they run first
    torch.randn(512, 512) @ torch.randn(512, 512)
    if quant != "none" and not packed:
        quantized_linear(torch.ones(64, 64, dtype=torch.bfloat16), None, quant)
    if packed == "int8":
        packed_linear(torch.ones(64, 64), Int8Linear)
config = check_folder(folder)
before = peak()
decoder, _ = load_decoder(
    folder, config.weight_files, config.decoder, Placement("cpu", False, dtype, quant, (), packed or None)
)
print(json.dumps([peak() - before, weight_bytes(decoder)]))
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = tensor_shapes(decoder_spec(CONFIG))
    tensors = {name: torch.randn(shape).mul_(0.05).bfloat16() for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.process
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
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(large_folder), dtype, quant, packed]

    rise, weights = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert 0.9 * weights < rise < MAX_RATIO * weights + LIBRARY_BYTES
