"""Computes a pass of a tiny model with llama.cpp in a process of its own, once for each build and processor.

A build with instructions that do not run here starts, and ends the process with SIGILL in its first pass, without any
message. It was built for another processor or, on CPUs with AMX, by GCC 12: of the 64 bytes that configure AMX's tiles,
its `_tile_loadconfig` reads 8, and the others are not written (seen with llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from specgen.core.errors import SpecgenError
from specgen.core.machine import cpu_flags, processor_name, version_of
from specgen.loading.gguf.trial_model import NUM_TOKENS, write_trial_model
from specgen.loading.libraries import has_llama_cpp
from specgen.storage.atomic_write import replace_file
from specgen.storage.folders import cache_root

WORKS, MISSING = "works", "not installed"
_BY_DEFAULT = {"SSE42": "sse4_2", "AVX": "avx", "AVX2": "avx2", "BMI2": "bmi2", "FMA": "fma", "F16C": "f16c"}
"""What a build without `GGML_NATIVE` uses: options of its CMake, and the flags of a CPU that has it."""
_ON_REQUEST = {
    "AVX512": frozenset({"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}),
    "AVX512_VBMI": frozenset({"avx512vbmi"}),
    "AVX512_VNNI": frozenset({"avx512_vnni"}),
    "AVX512_BF16": frozenset({"avx512_bf16"}),
    "AVX_VNNI": frozenset({"avx_vnni"}),
}
"""What it uses if it is asked to. Not AMX: see above."""
_FAULTS = ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGABRT")
"""Signals of a program that fails; others, as SIGKILL for lack of memory, come from outside."""
_TIMEOUT_SECONDS = 60.0
_PASSES = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from llama_cpp import llama_cpp as library
library.llama_backend_init()
params = library.llama_model_default_params()
params.n_gpu_layers = 0
model = library.llama_model_load_from_file(sys.argv[1].encode(errors="surrogateescape"), params)
if not model:
    sys.exit("a test model can't be loaded")
params = library.llama_context_default_params()
params.n_ctx, params.n_threads, params.n_threads_batch = 64, 1, 1
context = library.llama_init_from_model(model, params)
for count in ({NUM_TOKENS}, 1):
    ids = (library.llama_token * count)(*range(count))
    if status := library.llama_decode(context, library.llama_batch_get_one(ids, count)):
        sys.exit(f"llama_decode returned {{status}}")
"""
"""A pass over several tokens and one over a single token: they have kernels of their own."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """How the process ended.

    Args:
        signal: Name of the signal that ended it; empty if none did.
        problem: What else was wrong, in a few words; empty if nothing was.
    """

    signal: str = ""
    problem: str = ""

    @property
    def fault(self) -> str | None:
        """Why a pass would end this process, too; None if it would not."""
        if self.signal == "SIGILL":
            return "has instructions that do not run here, and ends the program with SIGILL in its first pass"
        return f"ends the program with {self.signal} in its first pass" if self.signal in _FAULTS else None


def rebuild_hint() -> str:
    """Returns how to build llama.cpp with what this CPU has."""
    arguments = " ".join(cmake_arguments(cpu_flags()))
    options = "--force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python"
    return f"build it again on this machine: CMAKE_ARGS='{arguments}' pip install {options} llama-cpp-python"


def cmake_arguments(flags: frozenset[str]) -> list[str]:
    """Returns the options of llama.cpp's CMake for a CPU with these flags; without flags, those of the compiler."""
    if not flags:
        return ["-DGGML_NATIVE=on"]
    missing = [f"-DGGML_{name}=off" for name, flag in _BY_DEFAULT.items() if flag not in flags]
    present = [f"-DGGML_{name}=on" for name, needed in _ON_REQUEST.items() if needed <= flags]
    return ["-DGGML_NATIVE=off", *missing, *present]


def llama_cpp_state() -> str:
    """Computes a pass; returns `WORKS`, `MISSING`, or in one sentence what is wrong and what to do."""
    if not has_llama_cpp():
        return MISSING
    trial = _run()
    if trial.fault is not None:
        return f"{trial.fault}: {rebuild_hint()}"
    return f"was ended by {trial.signal}" if trial.signal else trial.problem or WORKS


def llama_cpp_fault() -> str | None:
    """Returns in one sentence why a pass of the installed llama.cpp would end this process; None if it would not.

    The first call for a build computes a pass; later calls, and later runs, read the result.
    """
    with suppress(OSError):
        found = _result_path().read_text()
        if found in (WORKS, *_FAULTS):
            return _Trial("" if found == WORKS else found).fault
    return _run().fault


def _run() -> _Trial:
    """Computes a pass, and stores the result if another run would have the same."""
    with tempfile.TemporaryDirectory(prefix="specgen-") as folder:
        path = write_trial_model(Path(folder, "trial.gguf"))
        # With -c, Python searches the working folder first: -P keeps it from running a foreign `llama_cpp.py` there.
        command = [sys.executable, "-P", "-c", _PASSES, str(path)]
        try:
            ended = subprocess.run(  # noqa: S603 - this interpreter, and a constant
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return _Trial(problem="unknown: a test did not end in time")
    if ended.returncode > 0:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        return _Trial(problem=f"is unusable: {lines[-1][:200] if lines else f'exit code {ended.returncode}'}")
    trial = _Trial("" if ended.returncode == 0 else signal.Signals(-ended.returncode).name)
    if trial.fault is not None or not trial.signal:
        _store(trial.signal or WORKS)
    return trial


def _store(result: str) -> None:
    """Stores a result. A failure to write is ignored."""
    path = _result_path()
    with suppress(OSError, SpecgenError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, result.encode())


def _result_path() -> Path:
    """Returns where the result of this build on this processor is."""
    found = importlib.util.find_spec("llama_cpp")
    package = Path((found and found.origin) or "llama_cpp").parent
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or package / "lib")
    files = []
    for path in sorted(folder.glob("*")):
        with suppress(OSError):
            if path.is_file():
                files.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
    facts = (version_of("llama-cpp-python"), processor_name(), sorted(cpu_flags()), files)
    return cache_root() / "llama-cpp" / hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
