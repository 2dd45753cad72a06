"""Placement: device, compute type and weight format of a model, with the reasons."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.errors import DeviceError, MemoryShortageError, SettingsError
from specgen.core.settings import ModelSettings
from specgen.loading import packed_formats, placement
from specgen.loading.config_check import check_folder
from specgen.loading.format_timing import TimedLayer
from specgen.loading.placement import Placement, choose_placement
from specgen.loading.resolved_model import ModelConfig, ModuleSizes
from tests.loading.builders import cpu_with, edit_json, fails


def choose(folder: Path, *, from_gguf: bool = False, **settings: Any) -> Placement:
    return choose_placement(ModelSettings(str(folder), **settings), check_folder(folder), from_gguf=from_gguf)


@pytest.fixture(autouse=True)
def cpu(plain_cpu: None) -> None:
    pass


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, *free: int, capability: tuple[int, int] = (9, 0)) -> None:
    # Its import looks for CUDA: with pretended GPUs it fails, and leaves half a module for all later tests.
    with suppress(ImportError):
        import_module("bitsandbytes")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 10**12))
    monkeypatch.setattr(placement, "check_bitsandbytes", lambda quant, device: None)


CONFIG = ModelConfig("llama", 64, 128, None, "bfloat16", num_parameters=10**9, num_weight_bytes=2 * 10**9)
WIDE = replace(CONFIG, widths=(2048, 8192))


def test_auto_chooses_bfloat16_on_a_cpu_that_has_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "amx_bf16")

    chosen = choose(folder)

    assert (chosen.dtype, chosen.quant, chosen.remarks) == ("bfloat16", "none", ())


def float_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_formats, "may_run_kernels", lambda: True)
    monkeypatch.setattr(placement, "has_float_matmul", lambda dtype: True)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_weights_in_16_bits_run_on_our_own_kernel_as_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    float_kernel(monkeypatch)
    cpu_with(monkeypatch, "avx2")
    config = replace(check_folder(folder), dtype=stored)

    chosen = choose_placement(ModelSettings(""), config, from_gguf=False)

    assert (chosen.quant, chosen.dtype, chosen.packed_dtype) == ("none", stored, stored)
    assert stored in " ".join(chosen.remarks)


@pytest.mark.parametrize(("stored", "packed"), [("bfloat16", "bfloat16"), ("float16", None), ("float32", None)])
@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_with_bfloat16_products_keeps_or_makes_bfloat16_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flag: str, stored: str, packed: str | None
) -> None:
    float_kernel(monkeypatch)
    cpu_with(monkeypatch, flag)
    config = replace(check_folder(folder), dtype=stored)

    chosen = choose_placement(ModelSettings(""), config, from_gguf=False)

    assert (chosen.dtype, chosen.packed_dtype) == ("bfloat16", packed)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"dtype": "bfloat16"}, {}),
        ({}, {"dtype": "float32"}),
        ({}, {"decoder": None}),
        ({}, {"widths": (48, 64)}),
        ({}, {"quant_method": "gptq"}),
    ],
    ids=["requested type", "float32", "no decoder of ours", "width", "quantized"],
)
def test_other_models_do_not_run_on_our_own_kernel_of_16_bits(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    float_kernel(monkeypatch)
    config = replace(check_folder(folder), **{"dtype": "bfloat16", **changes})

    assert choose_placement(ModelSettings("", **settings), config, from_gguf=False).packed_dtype is None


def test_without_new_code_the_usual_type_is_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    float_kernel(monkeypatch)
    monkeypatch.setattr(placement, "has_float_matmul", lambda dtype: False)
    config = replace(check_folder(folder), dtype="bfloat16")

    chosen = choose_placement(ModelSettings(""), config, from_gguf=False)

    assert (chosen.dtype, chosen.packed_dtype) == ("float32", None)


def test_auto_chooses_nf4_on_a_cpu_with_avx512_bf16(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "avx512_bf16")
    config = replace(check_folder(folder), widths_fit_blocks=True)

    chosen = choose_placement(ModelSettings(""), config, from_gguf=False)

    assert (chosen.quant, chosen.dtype) == ("nf4", "bfloat16")


def test_layers_whose_width_does_not_fit_the_4_bit_kernel_are_not_quantized(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_with(monkeypatch, "avx512_bf16")
    config = check_folder(folder)

    assert choose_placement(ModelSettings(""), config, from_gguf=False).quant == "none"
    fails(SettingsError, lambda: choose(folder, quant="nf4"), "nf4", "64")


def test_auto_never_quantizes_a_gguf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "avx512_bf16")

    assert choose_placement(ModelSettings(""), check_folder(folder), from_gguf=True).quant == "none"


def test_auto_never_quantizes_a_quantized_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "avx512_bf16")
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})

    assert choose_placement(ModelSettings(""), check_folder(folder), from_gguf=False).quant == "none"


@pytest.mark.fault("F36")
def test_auto_does_not_quantize_without_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "avx512_bf16")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    chosen = choose_placement(ModelSettings(""), replace(check_folder(folder), widths_fit_blocks=True), from_gguf=False)

    assert chosen.quant == "none"
    assert "bitsandbytes" in " ".join(chosen.remarks)


def own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "avx512_vnni")
    monkeypatch.setattr(packed_formats, "may_run_kernels", lambda: True)
    monkeypatch.setattr(placement, "has_nf4_matmul", lambda: True)


def test_nf4_runs_on_our_own_kernel_without_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_kernel(monkeypatch)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = replace(check_folder(folder), widths_fit_blocks=True)

    chosen = choose_placement(ModelSettings("", quant="nf4"), config, from_gguf=False)

    assert (chosen.quant, chosen.dtype, chosen.packed_dtype) == ("nf4", "float32", "nf4")
    with pytest.raises(DeviceError):
        choose_placement(ModelSettings("", quant="nf4", dtype="bfloat16"), config, from_gguf=False)


def test_models_of_experts_stay_on_bitsandbytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_kernel(monkeypatch)
    experts = ModuleSizes(linear=100, conv1d=0, embedding=10, head=10, rest=1000, is_tied=True)
    config = replace(check_folder(folder), modules=experts)

    chosen = choose_placement(ModelSettings("", quant="nf4"), config, from_gguf=False)

    assert (chosen.quant, chosen.packed_dtype) == ("nf4", None)


def test_auto_measures_the_kernel_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    own_kernel(monkeypatch)
    measured: list[TimedLayer] = []

    def fastest(formats: list[str], layer: TimedLayer, measure: object, times: object) -> tuple[str, str]:
        measured.append(layer)
        return formats[-1], ""

    monkeypatch.setattr(placement, "fastest_format", fastest)
    for dtype in ("auto", "bfloat16"):
        chosen = choose_placement(ModelSettings("", dtype=dtype, device="cpu"), WIDE, from_gguf=False)
        assert chosen.packed_dtype == ("nf4" if dtype == "auto" else None)

    assert [(layer.packs_nf4, layer.dtype) for layer in measured] == [(True, measured[0].dtype)]


def test_the_smallest_format_is_kept_when_none_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    own_kernel(monkeypatch)
    monkeypatch.setattr(placement, "free_bytes", lambda device: 10)

    assert choose_placement(ModelSettings("", device="cpu"), WIDE, from_gguf=False).quant == "nf4"


@pytest.mark.fault("F38")
def test_auto_falls_back_to_the_cpu_and_gives_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")

    chosen = choose_placement(ModelSettings(""), check_folder(folder), from_gguf=False)

    assert chosen.device == "cpu"
    assert "CUDA" in " ".join(chosen.remarks)


def test_auto_chooses_nf4_and_bfloat16_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 10**11)

    chosen = choose_placement(ModelSettings("m"), CONFIG, from_gguf=False)

    assert (chosen.device, chosen.quant, chosen.dtype, chosen.spread) == ("cuda:0", "nf4", "bfloat16", False)


def test_auto_chooses_float16_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 10**11, capability=(7, 5))

    assert choose_placement(ModelSettings("m"), CONFIG, from_gguf=False).dtype == "float16"


def test_a_model_too_large_for_one_gpu_is_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 15 * 10**8, 15 * 10**8)

    assert choose_placement(ModelSettings("m", quant="none"), CONFIG, from_gguf=False).spread


def test_a_model_that_fits_one_gpu_is_not_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 10**10, 10**10)

    assert not choose_placement(ModelSettings("m", quant="none"), CONFIG, from_gguf=False).spread


@pytest.mark.fault("F46")
def test_a_model_too_large_for_all_gpus_is_not_put_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 10**9, 10**9)

    fails(
        MemoryShortageError,
        lambda: choose_placement(ModelSettings("m", quant="none"), CONFIG, from_gguf=False),
        "--quant nf4",
    )


def test_a_requested_gpu_is_the_only_one_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 10**6, 10**6)

    chosen = choose_placement(ModelSettings("m", device="cuda:1"), CONFIG, from_gguf=False)

    assert (chosen.device, chosen.spread) == ("cuda:1", False)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
@pytest.mark.fault("F38")
def test_a_missing_device_is_an_error(folder: Path, device: str) -> None:
    error = fails(DeviceError, lambda: choose(folder, device=device), f"--device {device}", "--device cpu")

    assert error.exit_code == 5


def test_a_gpu_number_beyond_the_last_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 10**10)

    fails(
        DeviceError,
        lambda: choose_placement(ModelSettings("m", device="cuda:1"), CONFIG, from_gguf=False),
        "cuda:1",
        "cuda:0",
    )


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "tpu", "", "cpu:0"])
def test_an_invalid_device_is_a_settings_error(folder: Path, device: str) -> None:
    fails(SettingsError, lambda: choose(folder, device=device), "--device", repr(device))


def test_a_quantized_checkpoint_is_not_quantized_again(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})

    fails(SettingsError, lambda: choose(folder, quant="nf4"), "--quant nf4", "gptq")


@pytest.mark.fault("F26")
def test_a_converted_gguf_is_not_quantized_again(folder: Path) -> None:
    fails(SettingsError, lambda: choose(folder, quant="nf4", from_gguf=True), "--quant nf4", "GGUF")


@pytest.mark.fault("F36")
def test_a_weight_format_without_bitsandbytes_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    error = fails(DeviceError, lambda: choose(folder, quant="nf4"), "bitsandbytes", "pip install 'bitsandbytes")

    assert error.exit_code == 5
    assert choose(folder, quant="none").quant == "none"


@pytest.mark.parametrize("quant", ["nf4", "int8"])
@pytest.mark.fault("F37")
def test_an_unusable_bitsandbytes_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch, quant: str) -> None:
    from bitsandbytes import functional

    def no_backend(*args: object, **options: object) -> None:
        raise NotImplementedError("no kernel for this device\nmany more lines")

    monkeypatch.setattr(functional, "quantize_4bit", no_backend)
    monkeypatch.setattr(functional, "int8_vectorwise_quant", no_backend)

    error = fails(DeviceError, lambda: choose(folder, quant=quant), "bitsandbytes", "no kernel for this device")

    assert "many more lines" not in error.message
