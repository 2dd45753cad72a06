"""The 4-bit layer for CUDA computes what its dequantized weights compute; on a CPU by bitsandbytes' reference."""

from __future__ import annotations

import pytest
import torch

from specgen.models.gemm_4bit import GemmNf4Linear, fits_gemm

pytest.importorskip("bitsandbytes")


def dequantized(weight: torch.Tensor) -> torch.Tensor:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    return functional.dequantize_4bit(packed, state)


@pytest.mark.parametrize("num_rows", [1, 5, 17])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_that_of_the_dequantized_weights(num_rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 128, generator=generator).bfloat16()
    bias = torch.randn(96, generator=generator).bfloat16() if has_bias else None
    inputs = torch.randn(num_rows, 128, generator=generator).bfloat16()

    found = GemmNf4Linear(weight, bias)(inputs)

    expected = torch.nn.functional.linear(
        inputs.float(), dequantized(weight).float(), None if bias is None else bias.float()
    )
    assert found.dtype == torch.bfloat16
    assert float((found - expected).norm() / expected.norm()) < 2 * torch.finfo(torch.bfloat16).eps


def test_joined_weights_are_the_weights_of_the_parts() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(rows, 64, generator=generator).bfloat16() for rows in (32, 8, 8)]

    joined = GemmNf4Linear(torch.cat(parts), None)
    inputs = torch.eye(64).bfloat16()

    assert torch.equal(joined(inputs).T, torch.cat([dequantized(part) for part in parts]))


def test_only_cuda_weights_of_whole_blocks_fit() -> None:
    assert not fits_gemm(torch.zeros(64, 64, dtype=torch.bfloat16))
    assert not fits_gemm(torch.zeros(64, 96, dtype=torch.bfloat16, device="meta"))


def test_its_size_is_half_a_byte_a_weight_and_the_scales() -> None:
    assert GemmNf4Linear(torch.ones(128, 256).bfloat16(), None).num_bytes == 128 * 256 // 2 + 128 * 256 // 64 * 4
