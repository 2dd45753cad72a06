"""Starts llama.cpp in a process of its own: a build for another processor may end the process with SIGILL.

No model is computed: a build that starts may still fail in the kernels of a quantized type.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from specgen.loading.libraries import has_llama_cpp

STARTS, MISSING = "starts", "not installed"
_START = "import llama_cpp; llama_cpp.llama_backend_init(); llama_cpp.llama_print_system_info()"
_TIMEOUT_SECONDS = 60.0
_REINSTALL = "install it again on this machine: pip install --force-reinstall --no-binary :all: llama-cpp-python"


def llama_cpp_state() -> str:
    """Returns `STARTS`, `MISSING`, or in one sentence what ends the installed llama.cpp at its start."""
    if not has_llama_cpp():
        return MISSING
    try:
        ended = subprocess.run(  # noqa: S603 - this interpreter, and a constant
            [sys.executable, "-c", _START], capture_output=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown: it did not start in time"
    if ended.returncode == -signal.SIGILL:
        return f"was built for another processor, and ends the program with SIGILL: {_REINSTALL}"
    if ended.returncode < 0:
        return f"ends the program with {signal.Signals(-ended.returncode).name}"
    if ended.returncode:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        return f"can't be started: {lines[-1][:200] if lines else f'exit code {ended.returncode}'}"
    return STARTS
