"""Loads a decoder, and prints by how much its own peak of memory rose and what the weights take, in bytes.

    python -m tests.loading.peak_child FOLDER DTYPE QUANT PACKED

The peak of a forked process starts at what it has in memory then.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from specgen.loading.config_check import check_folder
from specgen.loading.decoder_weights import load_decoder, weight_bytes
from specgen.loading.placement import Placement
from specgen.models.formats import Int8Linear
from specgen.models.packing import packed_linear
from specgen.models.quantized import quantized_linear
from tests.loading.peak import peak_bytes, return_freed_memory


def main() -> None:
    folder, (dtype, quant, packed) = Path(sys.argv[1]), sys.argv[2:]
    return_freed_memory()
    torch.set_num_threads(4)
    with torch.inference_mode():  # what the libraries take when they run first
        torch.randn(512, 512) @ torch.randn(512, 512)
        if quant != "none" and not packed:
            quantized_linear(torch.ones(64, 64, dtype=torch.bfloat16), None, quant)
        if packed == "int8":
            packed_linear(torch.ones(64, 64), Int8Linear)
    config = check_folder(folder)
    before = peak_bytes()
    decoder, _ = load_decoder(
        folder, config.weight_files, config.decoder, Placement("cpu", False, dtype, quant, (), packed or None)
    )
    print(json.dumps([peak_bytes() - before, weight_bytes(decoder)]))


if __name__ == "__main__":
    main()
