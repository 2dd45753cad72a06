"""Which backend runs what, and what a GGUF header says of its model; without llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.core.errors import DeviceError, SettingsError
from specgen.core.settings import BackendSettings, ModelSettings
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.names import ModelPlace
from specgen.loading.resolve import DEFAULT_CONTEXT, check_gguf, choose_backend, find_files, resolve
from specgen.loading.resolved_model import GgufFile, ModelConfig, ModelFiles, Role
from tests.loading.builders import fails, make_gguf

GGUF = ModelPlace("gguf", "model", Path("model.gguf"))
BUILT_IN = ModelPlace("built-in", "smollm2-135m-instruct")
FOLDER = ModelPlace("folder", "model", Path("model"))


def settings(backend: str = "auto", dtype: str = "auto", device: str = "auto", **options: int) -> ModelSettings:
    return ModelSettings("", dtype=dtype, device=device, backend=BackendSettings(backend, **options))  # type: ignore[arg-type]


@pytest.fixture(params=[True, False], ids=["with-extra", "without-extra"])
def has_extra(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("specgen.loading.resolve.has_llama_cpp", lambda: request.param)
    monkeypatch.setattr("specgen.loading.resolve.llama_cpp_fault", lambda: None)
    return bool(request.param)


def test_auto_runs_a_gguf_on_llama_cpp_if_installed(has_extra: bool) -> None:
    assert choose_backend(settings(), GGUF) == ("llama.cpp" if has_extra else "torch")


@pytest.mark.parametrize("has_head", [True, False])
def test_auto_runs_the_built_in_target_where_its_draft_head_runs(
    has_head: bool, has_extra: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specgen.loading.resolve.shipped_folders", lambda: [Path("head")] if has_head else [])

    assert choose_backend(settings(), BUILT_IN) == ("llama.cpp" if has_extra and not has_head else "torch")


def test_auto_gives_everything_else_to_transformers(has_extra: bool) -> None:
    assert choose_backend(settings(), FOLDER) == "torch"


def test_a_requested_compute_type_selects_torch(has_extra: bool) -> None:
    assert choose_backend(settings(dtype="float32"), GGUF) == "torch"


def test_torch_can_be_requested(has_extra: bool) -> None:
    assert choose_backend(settings("torch"), GGUF) == "torch"


def test_llama_cpp_for_a_folder_is_refused(has_extra: bool) -> None:
    fails(SettingsError, lambda: choose_backend(settings("llama.cpp"), FOLDER), "--backend llama.cpp")


def test_llama_cpp_with_a_compute_type_is_refused(has_extra: bool) -> None:
    fails(SettingsError, lambda: choose_backend(settings("llama.cpp", "float32"), GGUF), "--dtype float32")


def test_the_hint_for_a_missing_llama_cpp_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specgen.loading.resolve.has_llama_cpp", lambda: False)

    fails(DeviceError, lambda: choose_backend(settings("llama.cpp"), GGUF), "specgen-cli[gguf]")


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specgen.loading.resolve.has_llama_cpp", lambda: True)
    monkeypatch.setattr("specgen.loading.resolve.llama_cpp_fault", lambda: "ends the program with SIGILL")


@pytest.mark.usefixtures("faulty", "cache")
def test_auto_runs_a_gguf_on_torch_if_llama_cpp_would_end_the_program(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf")

    files = find_files(ModelSettings(str(path)))
    found = resolve(files, ModelSettings(str(path)), "target")

    assert found.format == "folder"
    assert any("SIGILL" in notice and "GGML_NATIVE" in notice for notice in found.notices)


@pytest.mark.usefixtures("faulty")
def test_a_llama_cpp_that_would_end_the_program_is_refused() -> None:
    fails(DeviceError, lambda: choose_backend(settings("llama.cpp"), GGUF), "SIGILL", "GGML_NATIVE")


def config_of(path: Path, context_size: int | None = None, role: Role = "target") -> ModelConfig:
    files = ModelFiles(path.parent, "tiny", gguf=GgufFile(path, scan_gguf(path)))
    return check_gguf(files, ModelSettings("", backend=BackendSettings(context_size=context_size)), role)


def test_the_facts_of_a_gguf_come_from_its_header(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf")

    facts = config_of(path)

    assert (facts.vocab_rows, facts.max_positions, facts.model_type, facts.dtype) == (64, 128, "llama", "F32")
    assert facts.num_weight_bytes == 4 * facts.num_parameters
    assert path.stat().st_size - 10_000 < facts.num_weight_bytes < path.stat().st_size


def test_a_cache_larger_than_the_window_is_refused_for_a_target_and_cut_for_a_draft(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf")

    fails(SettingsError, lambda: config_of(path, 129), "--context-size 129", "128")
    assert config_of(path, 129, "draft").max_positions == 128
    assert config_of(path, 64).max_positions == 64
    assert DEFAULT_CONTEXT > 128
