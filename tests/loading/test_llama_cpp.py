"""Options and messages of llama.cpp, which need not be installed for these."""

from __future__ import annotations

import pytest

from specgen.core.errors import DeviceError, SettingsError
from specgen.core.settings import BackendSettings, ModelSettings
from specgen.loading.llama_cpp import gpu_layers, printable
from tests.loading.builders import fails


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


def test_what_llama_cpp_says_can_not_act_on_a_terminal() -> None:
    assert printable("bad key \x1b]0;evil\x07\x1b[31m\r\nnext\u202e") == "bad key  ]0;evil  [31m  next"
    assert len(printable("x" * 5000)) == 300
