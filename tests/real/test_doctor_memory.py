"""Compares the memory that `doctor` estimates with the peak of a process that runs the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.cli.children import ROOT
from tests.real_models import real_model

OPTIONS = ["--quant", "none", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts other things elsewhere")
@pytest.mark.parametrize(
    "name", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-1.5b-instruct"]
)
def test_the_estimate_is_within_a_quarter_of_the_measured_peak(name: str) -> None:
    folder = real_model(name)

    output, _ = _run("doctor", "-t", str(folder), *OPTIONS, "--context", "512", "--json")
    pair = json.loads(output)["pair"]
    words = "Tell me everything you know about bridges. " * 30
    _, peak = _run("generate", "-t", str(folder), "-d", "none", *OPTIONS, "-n", "16", "--no-stats", words)

    assert pair["peak_bytes"] == pytest.approx(peak, rel=0.25)


def _run(*arguments: str) -> tuple[bytes, int]:
    """Returns the stdout of the command line and the peak memory of its process in bytes."""
    child = subprocess.Popen(
        [sys.executable, "-m", "specgen", *arguments], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=ROOT
    )
    assert child.stdout is not None
    output = child.stdout.read()
    child.stdout.close()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return output, usage.ru_maxrss * 1024
