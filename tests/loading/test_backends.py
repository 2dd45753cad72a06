"""Which engine runs what; llama.cpp need not be here for these."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.core.errors import DeviceError, SettingsError
from specgen.core.settings import BackendSettings, ModelSettings
from specgen.loading.gguf.header import scan_gguf
from specgen.loading.llama_cpp import gpu_layers, printable
from specgen.loading.names import ModelPlace
from specgen.loading.resolve import DEFAULT_CONTEXT, check_gguf, choose_backend
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
    return bool(request.param)


@pytest.mark.parametrize("place", [GGUF, BUILT_IN])
def test_auto_runs_a_gguf_on_llama_cpp_if_installed(place: ModelPlace, has_extra: bool) -> None:
    assert choose_backend(settings(), place) == ("llama.cpp" if has_extra else "torch")


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


@pytest.mark.parametrize(
    ("device", "layers", "can_offload", "expected"),
    [
        ("auto", None, False, 0),
        ("auto", None, True, -1),
        ("cpu", None, True, 0),
        ("cpu", 0, True, 0),
        ("cuda", None, True, -1),
        ("cuda:1", 7, True, 7),
        ("auto", 0, False, 0),
    ],
)
def test_layers_use_a_gpu_if_there_is_one(device: str, layers: int | None, can_offload: bool, expected: int) -> None:
    backend = BackendSettings(gpu_layers=layers)

    assert gpu_layers(ModelSettings("", device=device, backend=backend), can_offload=can_offload) == expected


@pytest.mark.parametrize(("device", "layers"), [("cuda", None), ("auto", 3), ("auto", -1), ("mps", None)])
def test_a_gpu_that_llama_cpp_does_not_support_is_reported(device: str, layers: int | None) -> None:
    asked = ModelSettings("", device=device, backend=BackendSettings(gpu_layers=layers))

    fails(
        DeviceError,
        lambda: gpu_layers(asked, can_offload=False),
        "GPU",
        device if layers is None else f"--gpu-layers {layers}",
    )


def test_layers_on_a_gpu_and_the_cpu_as_device_contradict_each_other() -> None:
    asked = ModelSettings("", device="cpu", backend=BackendSettings(gpu_layers=5))

    fails(SettingsError, lambda: gpu_layers(asked, can_offload=True), "--gpu-layers 5", "--device cpu")


@pytest.mark.parametrize(("name", "value"), [("gpu_layers", -2), ("context_size", 1), ("threads", 0)])
def test_values_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} {value}"):
        BackendSettings(**{name: value})  # type: ignore[arg-type]


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


def test_what_llama_cpp_says_can_not_act_on_a_terminal() -> None:
    assert printable("bad key \x1b]0;evil\x07\x1b[31m\r\nnext\u202e") == "bad key  ]0;evil  [31m  next"
    assert len(printable("x" * 5000)) == 300
