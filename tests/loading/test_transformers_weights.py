"""Loading weights: complete, finite, on the requested device and in the requested format, or an error."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.errors import DeviceError, MemoryShortageError, ModelFileError, NumericalError, SettingsError
from specgen.core.settings import ModelSettings
from specgen.loading import memory, placement
from specgen.loading.config_check import check_folder
from specgen.loading.model_config import ModelConfig
from specgen.loading.placement import choose_placement
from specgen.loading.transformers_weights import LoadedWeights, load_weights
from tests.loading.builders import RecordedProgress, edit_json, edit_weights, fails, make_folder, make_model, resolved

IDS = torch.tensor([[3, 4, 5, 6]])


def load(folder: Path, *, from_gguf: bool = False, **settings: Any) -> LoadedWeights:
    return load_weights(resolved(folder, ModelSettings(str(folder), **settings), from_gguf=from_gguf, name="tiny"))


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends to be a machine with a CPU only, which has neither bfloat16 nor packed products."""
    monkeypatch.setattr(placement, "has_float16_matmul", lambda: False)
    monkeypatch.setattr(placement, "has_int8_matmul", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(placement, "cpu_flags", lambda: frozenset({"avx2"}))


def cpu_with(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(placement, "cpu_flags", lambda: frozenset(flags))


def test_the_weights_are_those_of_the_file(folder: Path) -> None:
    loaded = load(folder)

    assert torch.equal(loaded.model(IDS).logits, make_model()(IDS).logits)


def test_the_model_is_in_eval_mode_without_gradients(folder: Path) -> None:
    model = load(folder).model

    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == "sdpa"


def test_the_info_describes_what_runs(folder: Path) -> None:
    info = load(folder).info

    assert (info.name, info.quant, info.dtype, info.device) == ("tiny", "none", "float32", "cpu")
    assert (info.num_parameters, info.num_bytes // 1000) == (22_688, 90)
    assert "AVX512-BF16" in info.remark


def test_the_info_of_a_converted_gguf_names_its_source(folder: Path) -> None:
    assert load(folder, from_gguf=True).info.remark.startswith("from GGUF")


def test_the_stage_names_role_and_model(folder: Path) -> None:
    report = RecordedProgress()

    load_weights(resolved(folder, ModelSettings(str(folder)), role="draft", name="tiny"), report)

    assert len(report.stages) == 1
    assert "draft" in report.stages[0]
    assert "tiny" in report.stages[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_requested_compute_type_is_used(folder: Path, dtype: str) -> None:
    loaded = load(folder, dtype=dtype)

    assert loaded.info.dtype == dtype
    assert loaded.info.remark == ""
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.fault("F17")
def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tied", tie_word_embeddings=True)

    assert load(folder).info.num_parameters == 20_640


def test_auto_chooses_bfloat16_on_a_cpu_that_has_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, "amx_bf16")

    info = load(folder).info

    assert (info.dtype, info.quant, info.remark) == ("bfloat16", "none", "")


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
    fails(SettingsError, lambda: load(folder, quant="nf4"), "nf4", "64")


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


@pytest.mark.fault("F38")
def test_auto_falls_back_to_the_cpu_and_gives_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")

    chosen = choose_placement(ModelSettings(""), check_folder(folder), from_gguf=False)

    assert chosen.device == "cpu"
    assert "CUDA" in " ".join(chosen.remarks)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, *free: int, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 10**12))
    monkeypatch.setattr(placement, "check_bitsandbytes", lambda quant, device: None)


CONFIG = ModelConfig("llama", 64, 128, None, "bfloat16", num_parameters=10**9, num_weight_bytes=2 * 10**9)


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
    error = fails(DeviceError, lambda: load(folder, device=device), f"--device {device}", "--device cpu")

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
    fails(SettingsError, lambda: load(folder, device=device), "--device", repr(device))


@pytest.mark.parametrize("quant", ["nf4", "fp4", "int8"])
def test_the_layers_have_the_requested_weight_format(folder: Path, quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch)
    loaded = load(folder, quant=quant)

    assert loaded.info.quant == quant
    assert loaded.info.num_parameters == 22_688
    assert loaded.info.num_bytes < 40_000


def test_int8_rows_do_not_influence_each_other(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["model.embed_tokens.weight"][40].mul_(100))
    model = load(folder, quant="int8").model

    first, second = (model(torch.tensor([[3, 4, tail, tail]])).logits[0, 1] for tail in (5, 40))

    assert torch.equal(first, second)


def test_nf4_uses_the_compute_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch)
    layer = load(folder, quant="nf4", dtype="bfloat16").model.model.layers[0].mlp.up_proj

    assert layer.compute_dtype == torch.bfloat16
    assert not layer.weight.quant_state.nested


def test_a_quantized_checkpoint_is_not_quantized_again(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})

    fails(SettingsError, lambda: load(folder, quant="nf4"), "--quant nf4", "gptq")


@pytest.mark.fault("F26")
def test_a_converted_gguf_is_not_quantized_again(folder: Path) -> None:
    fails(SettingsError, lambda: load(folder, quant="nf4", from_gguf=True), "--quant nf4", "GGUF")


@pytest.mark.fault("F36")
def test_a_weight_format_without_bitsandbytes_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    error = fails(DeviceError, lambda: load(folder, quant="nf4"), "bitsandbytes", "pip install 'bitsandbytes")

    assert error.exit_code == 5
    assert load(folder, quant="none").info.quant == "none"


@pytest.mark.parametrize("quant", ["nf4", "int8"])
@pytest.mark.fault("F37")
def test_an_unusable_bitsandbytes_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch, quant: str) -> None:
    from bitsandbytes import functional

    def no_backend(*args: object, **options: object) -> None:
        raise NotImplementedError("no kernel for this device\nmany more lines")

    monkeypatch.setattr(functional, "quantize_4bit", no_backend)
    monkeypatch.setattr(functional, "int8_vectorwise_quant", no_backend)

    error = fails(DeviceError, lambda: load(folder, quant=quant), "bitsandbytes", "no kernel for this device")

    assert "many more lines" not in error.message


@pytest.mark.fault("F17")
def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("model.norm.weight"))

    error = fails(ModelFileError, lambda: load(folder), "model.norm.weight")

    assert error.exit_code == 3


@pytest.mark.fault("F17")
def test_a_config_with_more_layers_than_the_file_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=5)

    fails(ModelFileError, lambda: load(folder), "model.layers.2.")


@pytest.mark.fault("F18")
def test_a_config_with_fewer_layers_than_the_file_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=1)

    fails(ModelFileError, lambda: load(folder), "model.layers.1.")


def test_a_config_with_another_width_than_the_file_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=96)

    fails(ModelFileError, lambda: load(folder), "model.layers.0.mlp.down_proj.weight")


def test_the_attention_named_in_the_config_is_ignored(folder: Path) -> None:
    edit_json(folder / "config.json", _attn_implementation="flash_attention_2")

    assert load(folder).model.config._attn_implementation == "sdpa"


def test_a_quantization_that_the_library_ignores_is_not_reported(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "no-such-method"})

    assert load(folder).info.quant == "none"


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.fault("F19")
def test_weights_with_nan_or_infinity_are_refused(folder: Path, name: str, value: float) -> None:
    edit_weights(folder, lambda tensors: tensors[name].view(-1)[7:].fill_(value))

    error = fails(NumericalError, lambda: load(folder), name)

    assert error.exit_code == 8


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"num_attention_heads": 5}, "32"),
        ({"hidden_act": "no-such-function"}, "no-such-function"),
        ({"rope_parameters": {"rope_type": "no-such-type"}}, "no-such-type"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"head_dim": 0}, "tiny"),
    ],
)
@pytest.mark.fault("F20")
def test_a_config_refused_by_the_library_is_reported_in_one_line(
    folder: Path, change: dict[str, object], part: str
) -> None:
    edit_json(folder / "config.json", **change)

    error = fails(ModelFileError, lambda: load(folder), str(folder), part)

    assert "\n" not in error.message


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
)
@pytest.mark.fault("F39")
def test_a_memory_shortage_suggests_the_most_effective_fix_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    import transformers

    def refuse(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)

    error = fails(MemoryShortageError, lambda: load(folder), "cpu", "tiny")

    assert error.exit_code == 5
    assert error.hint is not None
    assert error.hint.index("--quant nf4") < error.hint.index("--draft none")


@pytest.mark.fault("F41")
def test_a_model_larger_than_the_free_memory_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specgen.loading import transformers_weights as weights

    monkeypatch.setattr(weights, "free_bytes", lambda device: 1000)

    notices = load(folder).notices

    assert len(notices) == 1
    assert "tiny" in notices[0]


@pytest.mark.parametrize("quant", ["none", "int8", "nf4"])
@pytest.mark.fault("F41")
def test_the_memory_estimate_is_within_a_quarter(tmp_path: Path, quant: str) -> None:
    folder = make_folder(tmp_path / "wide", hidden_size=256, intermediate_size=1024, num_hidden_layers=3)
    loaded = load(folder, quant=quant)

    estimate = memory.needed_bytes(check_folder(folder), loaded.info.dtype, quant)

    assert 0.75 < estimate / loaded.info.num_bytes < 1.25


def test_the_free_memory_of_this_machine_is_known() -> None:
    assert (memory.free_bytes("cpu") or 0) > 2**20
