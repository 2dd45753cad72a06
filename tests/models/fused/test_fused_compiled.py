"""The fused kernels compile, without a card, and fit the shared memory of all cards since Ampere."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
SHARED_BYTES = 99 * 1024
"""Of a program at most, on the cards with least: compute capability 8.6, 8.9 and 12.0 (CUDA's programming guide)."""
NUM_KERNELS = 11


@pytest.mark.process
def test_every_kernel_compiles_and_fits() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.models.fused.compiled", "90"]

    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)

    assert ended.returncode == 0, ended.stderr[-2000:]
    made = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(made) == NUM_KERNELS
    assert all(one["shared"] <= SHARED_BYTES for one in made), made
