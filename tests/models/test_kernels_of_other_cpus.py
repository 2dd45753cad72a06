"""The kernels for CPUs that this machine is not become machine code, with the instructions that they are made for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from specgen.models.attention_code import ARGUMENTS, AttentionShape, attention_code
from specgen.models.cpu_vectors import cpu_vectors
from specgen.models.float_code import PACKING, float_code
from specgen.models.int8_code import int8_tiles
from specgen.models.kernel_code import complete_text, kernel_text
from specgen.models.kv_store_code import store_code
from specgen.models.native_code import host_features, target_machine
from specgen.models.nf4_code import nf4_tiles
from specgen.models.prologue_code import PROLOGUES
from specgen.models.step_code import step_code
from specgen.models.vector_code import CpuVectors, Tiles

HASWELL = ("haswell", "%ymm")
CPUS = {CpuVectors(64): ("icelake-server", "%zmm"), CpuVectors(32): ("alderlake", "%ymm")}


def attention_text() -> str:
    shape = AttentionShape(4, 2, 64, 64, num_together=2)
    return attention_code(shape) + store_code(shape, ARGUMENTS)


def float_text(dtype: torch.dtype, num_bytes: int) -> str:
    return complete_text(float_code(num_bytes, dtype), PROLOGUES, PACKING)


def assembly(machine: Any, text: str) -> list[str]:
    llvm = pytest.importorskip("llvmlite.binding")
    module = llvm.parse_assembly(text)
    module.verify()
    lines: list[str] = machine.emit_assembly(module).splitlines()
    return lines


def machine_of(cpu: str) -> Any:
    llvm = pytest.importorskip("llvmlite.binding")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu=cpu, opt=2)


@pytest.mark.parametrize("tiles", [int8_tiles, nf4_tiles])
@pytest.mark.parametrize("vectors", [CpuVectors(64), CpuVectors(32), CpuVectors(32, has_vnni=False)], ids=str)
@pytest.mark.fast("*-int8_tiles")
def test_products_of_bytes_use_the_instructions_of_each_kind_of_vectors(
    tiles: Callable[[CpuVectors], Tiles], vectors: CpuVectors
) -> None:
    cpu, register = CPUS.get(vectors, HASWELL)
    instruction = "vpdpbusd" if vectors.has_vnni else "vpmaddubsw"

    lines = assembly(machine_of(cpu), kernel_text(tiles(vectors), PROLOGUES))

    assert any(instruction in line and register in line for line in lines)


@pytest.mark.parametrize(("num_bytes", "cpu", "register"), [(64, *CPUS[CpuVectors(64)]), (32, *HASWELL)])
@pytest.mark.parametrize(
    "text",
    [
        lambda _: attention_text(),
        lambda _: step_code(PROLOGUES),
        partial(float_text, torch.bfloat16),
        partial(float_text, torch.float16),
    ],
    ids=["attention", "steps", "bfloat16", "float16"],
)
@pytest.mark.fast("steps-*", "float16-32-*", "attention-64-*")
def test_products_of_floats_are_added_in_one_instruction(
    text: Callable[[int], str], num_bytes: int, cpu: str, register: str
) -> None:
    """A call of the C library for each would be rounded alike, and take a hundred times as long."""
    lines = assembly(machine_of(cpu), text(num_bytes))

    assert any("vfmadd" in line and register in line for line in lines)
    assert not any("call" in line and "fma" in line for line in lines)


@pytest.mark.skipif(cpu_vectors() is None, reason="needs AVX2")
def test_torchs_variable_for_avx2_holds_for_our_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """So with it, tests run the code that a CPU with AVX2 runs."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")

    lines = assembly(target_machine(), attention_text())

    assert not any(name.startswith(("avx512", "amx")) for name in host_features())
    assert any("%ymm" in line for line in lines)
    assert not any("%zmm" in line for line in lines)
