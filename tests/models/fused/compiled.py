"""Compiles the fused kernels for a card that is not there: `python -m tests.models.fused.compiled 90`.

It prints a line of JSON for each, with its bytes of shared memory.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specgen.models.fused.kernels.attention import attend_parts, sum_parts
from specgen.models.fused.kernels.products import multiply, multiply_nf4
from specgen.models.fused.kernels.rows import add_and_norm, rotate_and_store
from specgen.models.fused.unpacking import unpacking

HALF, SINGLE, LONG = "*bf16", "*fp32", "*i64"
PRODUCT = {"NUM_COLUMNS": 18944, "NUM_INPUTS": 3584, "HAS_BIAS": False, "IS_SPLIT": True}


def compiled(kernel: Any, types: str, constants: dict[str, Any], **options: int) -> dict[str, Any]:
    """Compiles a kernel whose arguments have these types, in order."""
    names = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(names, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in names if "*" in signature[name]}
    source = ASTSource(kernel, signature, places, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    return {"kernel": kernel.__name__, "shared": made.metadata.shared, **options}


def main() -> None:
    """Compiles all kernels as a 7B uses them."""
    dependent = {"IS_DEPENDENT": int(sys.argv[1]) >= 90}
    for tile, gate, parts in ((16, "silu", 1), (32, "silu", 1), (16, "none", 4)):
        sizes = {"GATE": gate, "NUM_PARTS": parts, "COLUMNS": 32}
        types = f"{HALF} {HALF} {HALF} {HALF if parts == 1 else SINGLE} i32"
        constants = {**PRODUCT, **sizes, "TILE": tile, "BLOCK": 128, **dependent}
        print(json.dumps(compiled(multiply, types, constants, num_warps=2 if parts == 1 else 4, num_stages=4)))
    for dtype, name in ((torch.bfloat16, "*bf16"), (torch.float16, "*fp16")):
        types = f"{name} *u8 {SINGLE} {SINGLE} {name} {name} i32"
        sizes = {"GATE": "silu", "NUM_PARTS": 1, "TILE": 16, "COLUMNS": 32, "UNROLLED": 2, "ASSEMBLY": unpacking(dtype)}
        print(json.dumps(compiled(multiply_nf4, types, {**PRODUCT, **sizes, **dependent}, num_warps=4, num_stages=4)))
    for size, has_tree in ((128, False), (128, True), (256, True)):
        shape = {"GROUP": 7, "TOKENS": 2, "TILE": 16, "SIZE": size, "SIZE_PADDED": size, "PART": 128}
        kind = {
            "WINDOW": 4096,
            "HAS_CAP": True,
            "HAS_TREE": has_tree,
            "TREE_ROWS": 17,
            "BLOCK": 2**14 // size,
        }
        types = f"{HALF} {HALF} {HALF} {LONG} {LONG} {LONG} {SINGLE} {SINGLE} {SINGLE} fp32 fp32 i32 i32"
        print(json.dumps(compiled(attend_parts, types, {**shape, **kind, **dependent}, num_warps=4, num_stages=2)))
    sizes = {"SIZE": 128, "SIZE_PADDED": 128, "CHUNK": 16, "IS_SPLIT": True}
    print(
        json.dumps(compiled(sum_parts, f"{SINGLE} {SINGLE} {SINGLE} {HALF} i32", {**sizes, **dependent}, num_warps=4))
    )
    flags = dict.fromkeys(("HAS_ADDED", "HAS_BIAS", "HAS_OUT_NORM", "HAS_IN_NORM", "HAS_SCALE", "IS_SPLIT"), True)
    types = f"{HALF} {SINGLE} {HALF} {SINGLE} {SINGLE} {HALF} {HALF} i32 i32 fp32 fp32"
    constants = {**flags, "NUM_PARTS": 4, "BLOCK": 4096, **dependent}
    print(json.dumps(compiled(add_and_norm, types, constants, num_warps=8)))
    heads = {"NUM_HEADS": 28, "NUM_KV_HEADS": 4, "NUM_PARTS": 4, "HAS_BIAS": True, "HAS_NORM": True}
    types = f"{SINGLE} {HALF} {HALF} {HALF} {HALF} {HALF} {LONG} {LONG} {HALF} {HALF} {HALF} i32 i32 fp32"
    constants = {**heads, "ROTATED": 64, "SIZE": 128, "BLOCK": 128, **dependent}
    print(json.dumps(compiled(rotate_and_store, types, constants, num_warps=2)))


if __name__ == "__main__":
    main()
