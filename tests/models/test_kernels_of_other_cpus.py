"""The kernels for CPUs that this machine is not become machine code, with the instructions that they are made for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specgen.models.int8_code import int8_tiles
from specgen.models.kernel_code import kernel_text
from specgen.models.nf4_code import nf4_tiles
from specgen.models.prologue_code import PROLOGUES
from specgen.models.vector_code import CpuVectors, Tiles


@pytest.mark.parametrize("tiles", [int8_tiles, nf4_tiles])
@pytest.mark.parametrize(
    ("vectors", "cpu", "instruction", "register"),
    [
        (CpuVectors(64), "icelake-server", "vpdpbusd", "%zmm"),
        (CpuVectors(32), "alderlake", "vpdpbusd", "%ymm"),
        (CpuVectors(32, has_vnni=False), "haswell", "vpmaddubsw", "%ymm"),
    ],
)
@pytest.mark.fast("*-int8_tiles")
def test_code_is_valid_for_each_kind_of_vectors(
    tiles: Callable[[CpuVectors], Tiles], vectors: CpuVectors, cpu: str, instruction: str, register: str
) -> None:
    llvm = pytest.importorskip("llvmlite.binding")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu=cpu, opt=2)
    module = llvm.parse_assembly(kernel_text(tiles(vectors), PROLOGUES))
    module.verify()

    lines = machine.emit_assembly(module).splitlines()

    assert any(instruction in line and register in line for line in lines)
