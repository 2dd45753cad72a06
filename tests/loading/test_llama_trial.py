"""A trial pass of llama.cpp on fakes, which end their process as a build for another processor does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from gguf import GGUFReader

from specgen.loading import llama_trial
from specgen.loading.gguf.trial_model import write_trial_model
from specgen.loading.llama_trial import WORKS, cmake_arguments, llama_cpp_fault, llama_cpp_state
from tests.engine.engines import needs_llama_cpp

FAKE = """
import os, signal, types
llama_backend_init = int
llama_model_default_params = llama_context_default_params = types.SimpleNamespace
llama_model_load_from_file = llama_init_from_model = lambda *_: 1
llama_batch_get_one = lambda ids, count: count
def llama_decode(context, count):
    {decode}
    return 0
class ArrayType(type):
    def __mul__(cls, count):
        return lambda *ids: ids
class llama_token(metaclass=ArrayType):
    pass
"""
WORKING = "pass"


@pytest.fixture
def runs(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a fake llama.cpp, which every trial uses, and a file with a line for each trial."""
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(package))
    monkeypatch.setattr(llama_trial, "has_llama_cpp", lambda: True)
    # Other tests compute the trial once: tests.fixtures.one_llama_trial.
    monkeypatch.setattr(llama_trial, "_run", llama_trial._run.__wrapped__)
    return package


def install(package: Path, decode: str) -> None:
    counted = f"open({str(package.parent / 'count')!r}, 'a').write('x'); {decode}"
    (package / "llama_cpp.py").write_text(FAKE.format(decode=counted))


def num_passes(package: Path) -> int:
    path = package.parent / "count"
    return len(path.read_text()) if path.exists() else 0


def dies_of(name: str, count: int = 32) -> str:
    return f"count == {count} and os.kill(os.getpid(), signal.{name})"


@pytest.mark.process
@pytest.mark.parametrize("count", [32, 1])
def test_a_build_that_dies_in_a_pass_is_reported_with_what_to_do(runs: Path, count: int) -> None:
    """Passes over several tokens and over one have kernels of their own."""
    install(runs, dies_of("SIGILL", count))

    state = llama_cpp_state()

    assert "SIGILL" in state
    assert "CMAKE_ARGS='-DGGML_NATIVE=" in state


WIDE = frozenset({"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"})
OLD = frozenset({"sse4_2", "avx"})
USUAL = frozenset({"sse4_2", "avx", "avx2", "bmi2", "fma", "f16c"})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (USUAL, set()),
        (OLD, {"AVX2=off", "BMI2=off", "FMA=off", "F16C=off"}),
        (USUAL | WIDE | {"avx512_vnni", "amx_tile", "amx_int8"}, {"AVX512=on", "AVX512_VNNI=on"}),
        (USUAL | WIDE - {"avx512dq"}, set()),
    ],
)
def test_a_build_is_asked_for_what_the_cpu_has_but_not_for_amx(flags: frozenset[str], expected: set[str]) -> None:
    assert set(cmake_arguments(flags)) == {"-DGGML_NATIVE=off", *(f"-DGGML_{option}" for option in expected)}


def test_without_flags_the_compiler_decides() -> None:
    assert cmake_arguments(frozenset()) == ["-DGGML_NATIVE=on"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("decode", "expected"),
    [
        (WORKING, "works"),
        (dies_of("SIGSEGV"), "SIGSEGV"),
        (dies_of("SIGKILL"), "SIGKILL"),
        ("raise OSError('libggml.so is missing')", "libggml.so is missing"),
        ("return 1", "llama_decode returned 1"),
    ],
)
def test_the_state_says_how_a_pass_ended(runs: Path, decode: str, expected: str) -> None:
    install(runs, decode)

    assert expected in llama_cpp_state()


@pytest.mark.process
@pytest.mark.parametrize(("decode", "expected"), [(WORKING, None), (dies_of("SIGILL"), "SIGILL")])
def test_a_build_is_tried_once(runs: Path, decode: str, expected: str | None) -> None:
    install(runs, decode)

    found = [llama_cpp_fault() for _ in range(3)]

    assert num_passes(runs) == (1 if expected else 2)
    assert all(fault is None if expected is None else expected in str(fault) for fault in found)


@pytest.mark.process
def test_another_build_is_tried_again(runs: Path) -> None:
    install(runs, dies_of("SIGILL"))
    assert llama_cpp_fault() is not None
    install(runs, WORKING)

    assert llama_cpp_fault() is None


@pytest.mark.process
@pytest.mark.parametrize("decode", [dies_of("SIGKILL"), "raise MemoryError"])
def test_what_says_nothing_of_the_build_is_neither_a_fault_nor_remembered(runs: Path, decode: str) -> None:
    install(runs, decode)

    assert llama_cpp_fault() is None
    assert llama_cpp_fault() is None
    assert num_passes(runs) == 2


@pytest.mark.process
def test_a_module_in_the_working_folder_is_not_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(runs, WORKING)
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "llama_cpp.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    monkeypatch.chdir(folder)

    assert llama_cpp_state() == "works"
    assert not (folder / "ran").exists()


@pytest.mark.process
def test_a_damaged_result_is_not_believed(runs: Path, cache: Path) -> None:
    install(runs, WORKING)
    llama_cpp_fault()
    (stored,) = (cache / "llama-cpp").iterdir()
    stored.write_text("SIGNONSENSE")

    assert llama_cpp_fault() is None
    assert stored.read_text() == "works"


def test_the_trial_model_has_matrices_of_the_common_types(tmp_path: Path) -> None:
    path = write_trial_model(tmp_path / "trial.gguf")

    kinds = {tensor.tensor_type.name for tensor in GGUFReader(path).tensors}

    assert {"Q4_K", "Q6_K", "Q8_0", "Q4_0", "F16", "F32"} <= kinds


@pytest.mark.process
@pytest.mark.parametrize("needed", [pytest.param(None, marks=needs_llama_cpp)])
def test_the_installed_llama_cpp_reads_the_trial_model(needed: None, cache: Path) -> None:
    assert importlib.util.find_spec("llama_cpp") is not None
    assert llama_cpp_state() == WORKS or llama_cpp_fault() is not None
