"""Products on the fused kernels: dense and nf4, whole, in parts and gated, of sizes that fill no tile."""

from __future__ import annotations

import os
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.models.fused.divisions import Division, dense_division, nf4_division
from specgen.models.fused.products import DenseProduct, KernelProduct, Nf4Product, OtherProduct, product_of, split
from specgen.models.fused.unpacking import NF4, unpacking
from specgen.models.gemm_4bit import GemmNf4Linear

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # as on a card, infinity is right
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
INPUTS, COLUMNS = 192, 88


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0])).half()


def dequantized(layer: GemmNf4Linear) -> Tensor:
    """The weight by the definition of nf4: the value of each code, times the scale of its 64 inputs."""
    packed = layer.packed.view(layer.out_features, -1)
    codes = torch.stack([packed >> 4, packed & 15], -1).view(layer.out_features, -1).long()
    scales = layer.scales.view(layer.out_features, -1) if layer.scales.dim() == 1 else layer.scales.t()
    return torch.tensor(NF4)[codes] * scales.repeat_interleave(64, 1)


def made(kind: str, *, has_bias: bool = True) -> tuple[KernelProduct, Tensor, Tensor]:
    """A product, its weight and its bias."""
    bias = normal(COLUMNS) if has_bias else None
    if kind == "dense":
        weight = normal(COLUMNS, INPUTS)
        return DenseProduct(weight, bias), weight.float(), torch.zeros(COLUMNS) if bias is None else bias.float()
    layer = GemmNf4Linear(normal(COLUMNS, INPUTS), bias)
    weight = dequantized(layer)
    return Nf4Product(layer), weight, torch.zeros(COLUMNS) if bias is None else bias.float()


def ordered(product: KernelProduct, inputs: Tensor) -> Tensor:
    return split(inputs) if product.takes_split else inputs


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert float((found.float() - expected).norm() / expected.norm()) < 1e-3


@interpreted
@pytest.mark.parametrize("rows", [1, 5, 17])
@pytest.mark.parametrize("kind", ["dense", "nf4"])
@pytest.mark.fast("nf4-5")
def test_a_product_is_the_sum_of_its_parts_and_the_bias(kind: str, rows: int) -> None:
    product, weight, bias = made(kind)
    inputs = normal(rows, INPUTS)
    expected = inputs.float() @ weight.T

    assert_near(product.whole(inputs), expected + bias)
    for num_parts in (1, 2, 3):
        found = product.parts(ordered(product, inputs), Division(32, 64, num_parts))
        assert found.tensor.shape == (num_parts, rows, COLUMNS)
        assert found.bias is not None
        assert_near(found.tensor.sum(0) + found.bias, expected + bias)


@interpreted
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("kind", ["dense", "nf4"])
def test_a_gate_is_applied_after_the_product(kind: str, activation: str, has_bias: bool) -> None:
    product, weight, bias = made(kind, has_bias=has_bias)
    inputs = normal(3, INPUTS)
    gate, up = (inputs.float() @ weight.T + bias).chunk(2, -1)
    active = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")

    assert_near(product.gated(ordered(product, inputs), activation), active * up)  # type: ignore[arg-type]


@interpreted
def test_a_gated_product_writes_in_the_order_that_an_nf4_product_reads() -> None:
    product = DenseProduct(normal(256, INPUTS), None)
    inputs = normal(3, INPUTS)

    found = product.gated(inputs, "silu", is_split=True)

    assert torch.equal(found, split(product.gated(inputs, "silu")))


def test_split_inputs_are_the_even_then_the_odd_ones_of_each_block() -> None:
    found = split(torch.arange(128)[None])[0].tolist()

    assert found == [*range(0, 64, 2), *range(1, 64, 2), *range(64, 128, 2), *range(65, 128, 2)]


def run_assembly(text: str, packed: int) -> list[int]:
    """Executes the few instructions of `unpacking` on one register. Returns the four outputs."""
    registers: dict[str, int] = {"$4": packed}

    def value(name: str) -> int:
        return registers[name] if name in registers else int(name, 0)

    for line in re.findall(r"^(?!\.reg)[a-z].*;$", text, re.MULTILINE):
        name, target, *sources = re.split(r"[ ,;]+", line)[:-1]
        given = [value(source) for source in sources]
        if name == "and.b32":
            found = given[0] & given[1]
        elif name == "shr.u32":
            found = given[0] >> given[1]
        elif name == "lop3.b32":
            assert given[3] == 0xEA, "the table of (a & b) | c"
            found = given[0] & given[1] | given[2]
        else:
            assert name == "prmt.b32"
            eight = given[0].to_bytes(4, "little") + given[1].to_bytes(4, "little")
            chosen = [given[2] >> 4 * index & 15 for index in range(4)]
            assert max(chosen) < 8, "no byte is a sign"
            found = int.from_bytes(bytes(eight[index] for index in chosen), "little")
        registers[target] = found
    return [registers[f"${index}"] for index in range(4)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_assembly_unpacks_every_byte(dtype: torch.dtype) -> None:
    values, text = torch.tensor(NF4).to(dtype), unpacking(dtype)
    for byte in range(256):
        four = [byte, (byte + 51) % 256, (byte * 7) % 256, 255 - byte]
        words = run_assembly(text, int.from_bytes(bytes(four), "little"))
        found = torch.tensor([word - 2**32 * (word >> 31) for word in words], dtype=torch.int32).view(dtype)
        assert found[:4].tolist() == [float(values[one >> 4]) for one in four]
        assert found[4:].tolist() == [float(values[one & 15]) for one in four]


def test_the_values_are_those_of_bitsandbytes() -> None:
    from bitsandbytes.functional import get_4bit_type

    assert torch.equal(torch.tensor(NF4), get_4bit_type("nf4", device="cpu"))


def test_other_layers_are_called_as_they_are() -> None:
    assert isinstance(product_of(nn.Linear(64, 8)), OtherProduct)  # float32
    assert isinstance(product_of(nn.Linear(64, 8).half()), DenseProduct)


@pytest.mark.parametrize(
    ("columns", "inputs", "num_parts"),
    [(4608, 3584, 2), (3584, 3584, 4), (3584, 18944, 4), (1152, 896, 4), (896, 896, 4), (896, 4864, 8)],
)
def test_products_of_a_7b_and_a_05b_model_are_divided_as_was_fastest_on_an_h200(
    columns: int, inputs: int, num_parts: int
) -> None:
    assert dense_division(columns, inputs, 132).num_parts == num_parts


def test_no_part_is_empty() -> None:
    for inputs in range(64, 4096, 64):
        for division in (dense_division(64, inputs, 132), nf4_division(64, inputs, 132)):
            blocks = -(-inputs // division.block)
            per_part = -(-blocks // division.num_parts)
            assert (division.num_parts - 1) * per_part < blocks
