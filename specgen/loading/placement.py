"""Chooses device, compute type and weight format of a model, with the reasons. Loads nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from specgen.core.errors import DeviceError, SettingsError, first_line
from specgen.core.machine import cpu_flags, version_of
from specgen.core.settings import ModelSettings
from specgen.loading.cuda_memory import USABLE, cuda_bytes
from specgen.loading.format_autotune import LEAST_MEASURED, fastest_format
from specgen.loading.format_timing import TimedLayer, measure_formats
from specgen.loading.memory import free_bytes, shortage
from specgen.loading.packed_formats import may_pack_nf4, packed_floats
from specgen.loading.resolved_model import ModelConfig, Role
from specgen.loading.weight_sizes import needed_bytes
from specgen.models.cpu_vectors import has_bfloat16_products
from specgen.models.formats import has_float16_matmul, has_int8_matmul
from specgen.models.packing import PackedFormat, has_float_matmul, has_nf4_matmul

if TYPE_CHECKING:
    from specgen.storage.cost_store import CostStore

INSTALL_BITSANDBYTES = "install it with: pip install 'bitsandbytes>=0.50', or use --quant none"

Choice = tuple[str, tuple[str, ...]]
"""A value, and the remarks that explain it."""


class DeviceLayers(NamedTuple):
    """Consecutive layers on one device."""

    device: str
    num_layers: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model is loaded.

    Args:
        device: `cpu`, `mps`, `cuda:0`.
        spread: Layers are spread over several CUDA devices; `device` is the first of them.
        dtype: Compute type, `bfloat16`.
        quant: `none`, `int8`, `nf4` or `fp4`: how the weights are quantized at load.
        remarks: Why `auto` was resolved so.
        packed_dtype: Type of packed weights on a CPU; the arithmetic is float32. See `specgen.models.formats`.
        segments: Which devices run which layers of specgen's decoder. Empty: all on `device`, or transformers decides.
    """

    device: str
    spread: bool
    dtype: str
    quant: str
    remarks: tuple[str, ...]
    packed_dtype: PackedFormat | None = None
    segments: tuple[DeviceLayers, ...] = ()

    def layer_devices(self, num_layers: int) -> list[str]:
        """Returns the device of each layer; the embedding is on the first of them, the head on the last."""
        return [part.device for part in self.segments for _ in range(part.num_layers)] or [self.device] * num_layers

    @property
    def device_name(self) -> str:
        """The device for people: `cpu`, `cuda:0`, or `cuda:0-1` for several."""
        devices = [part.device for part in self.segments] or [str(torch.device(self.device))]
        return devices[0] if len(devices) == 1 else f"{devices[0]}-{devices[-1].rpartition(':')[2]}"

    @property
    def arithmetic(self) -> str:
        """What packed layers compute in, as in `ModelInfo`."""
        return "" if self.packed_dtype is None else "int8" if self.packed_dtype in ("int8", "nf4") else "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The compute type as torch's object."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def choose_placement(
    settings: ModelSettings,
    config: ModelConfig,
    *,
    from_gguf: bool,
    role: Role = "target",
    times: CostStore | None = None,
) -> Placement:
    """Chooses device, compute type and weight format of a model.

    Args:
        from_gguf: It was converted from a GGUF, which is already quantized.
        role: Decides what `auto` measures: a draft's single passes, or a target's passes over drafts on a CPU.
        times: Stored measurements of formats; None: they are measured again.

    Raises:
        DeviceError: The requested device, or bitsandbytes, is missing or unusable.
        SettingsError: The requested weight format can't be applied to the checkpoint.
    """
    device, of_device = _device(settings.device)
    dtype, of_dtype = _dtype(settings, device)
    stored = packed_floats(settings, config, device, has_bfloat16=has_fast_bf16_cpu())
    packs_nf4 = may_pack_nf4(settings, config, device)
    quant, reason = _quant(settings, config, device, from_gguf, role)
    if settings.quant == "auto" and not from_gguf and (role == "draft" or device == "cpu"):
        layer = None if config.widths is None else TimedLayer(*config.widths, dtype, device, role, packs_nf4, stored)
        quant, reason = _fastest(config, layer, times) or (quant, reason)
    packed_dtype: Literal["float16"] | None = None
    if device == "cpu" and config.quant_method is None:
        if quant == "nf4" and packs_nf4 and has_nf4_matmul():
            return Placement(device, False, "float32", quant, of_device + reason, "nf4")
        if quant == "int8" and has_int8_matmul():
            return Placement(device, False, "float32", quant, of_device + reason, "int8")
        if quant == "none" and stored is not None and has_float_matmul(getattr(torch, stored)):
            remark = f"{stored} weights, float32 arithmetic"
            return Placement(device, False, stored, quant, (*of_device, remark, *reason), stored)
        if quant == "none" and dtype == "float16" and has_float16_matmul():
            packed_dtype = "float16"
    if quant != "none":
        try:
            check_bitsandbytes(quant, device)
        except DeviceError as error:
            if settings.quant != "auto":
                raise
            quant, reason = "none", (f"not quantized: {error.message}",)
    is_spread = _is_spread(settings, config, device, dtype, quant)
    return Placement(device, is_spread, dtype, quant, of_device + of_dtype + reason, packed_dtype)


def has_fast_bf16_cpu() -> bool:
    """Returns whether this CPU has bfloat16 products."""
    return has_bfloat16_products(cpu_flags())


def check_bitsandbytes(quant: str, device: str) -> None:
    """Quantizes one tiny tensor, so that an unusable library is reported before gigabytes are read (F36, F37).

    Raises:
        DeviceError: bitsandbytes is missing, or has no code for this device.
    """
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise DeviceError("bitsandbytes is not installed", INSTALL_BITSANDBYTES) from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise DeviceError(f"bitsandbytes is unusable: {first_line(error)}", INSTALL_BITSANDBYTES) from error
    version = version_of("bitsandbytes") or ""
    is_old = tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < (0, 50)
    if version and is_old and device.startswith("cuda") and quant != "int8":
        # A pass over eight tokens then takes three times as long as one over a single token: no draft pays.
        raise DeviceError(f"bitsandbytes {version} unpacks 4-bit weights in passes of drafts", INSTALL_BITSANDBYTES)
    try:
        sample = torch.ones(64, 64, dtype=torch.float16, device=device)
        if quant == "int8":
            functional.int8_vectorwise_quant(sample)
        else:
            functional.quantize_4bit(sample, quant_type=quant)
    except (RuntimeError, NotImplementedError, ValueError, AttributeError, OSError) as error:
        raise DeviceError(
            f"bitsandbytes is unusable on {device}: {first_line(error)}", "use --quant none, or another --device"
        ) from error


def _device(requested: str) -> Choice:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", requested):
        raise SettingsError(f"invalid --device {requested!r}", "give auto, cpu, cuda, cuda:1 or mps")
    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if requested == "auto":
        if num_cuda:
            return "cuda:0", ()
        if torch.backends.mps.is_available():
            return "mps", ()
        # A CUDA build that finds no device is reported: often the driver is too old.
        return "cpu", (("no usable CUDA device",) if torch.version.cuda else ())
    if requested.startswith("cuda"):
        index = int(requested.partition(":")[2] or 0)
        if num_cuda == 0:
            built = "check the driver with nvidia-smi" if torch.version.cuda else "this torch is built without CUDA"
            raise DeviceError(f"--device {requested}: no CUDA device found", f"{built}; or use --device cpu")
        if index >= num_cuda:
            raise DeviceError(
                f"--device {requested}: this machine has {num_cuda} CUDA device{'' if num_cuda == 1 else 's'}",
                f"the last one is cuda:{num_cuda - 1}",
            )
        return f"cuda:{index}", ()
    if requested == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps: no Apple GPU found", "use --device cpu")
    return requested, ()


def _dtype(settings: ModelSettings, device: str) -> Choice:
    if settings.dtype != "auto":
        return settings.dtype, ()
    if device == "cpu":
        if has_fast_bf16_cpu():
            return "bfloat16", ()
        if has_float16_matmul():
            return "float16", ("float16 weights, float32 arithmetic: this CPU has no AVX512-BF16",)
        return "float32", ("float32: this CPU has no AVX512-BF16",)
    if device == "mps":
        return "float16", ()
    # Of this device: the first one may be newer.
    if torch.cuda.get_device_capability(torch.device(device)) >= (8, 0) or torch.version.hip:
        return "bfloat16", ()
    return "float16", ("float16: this GPU has no bfloat16",)


def _quant(settings: ModelSettings, config: ModelConfig, device: str, from_gguf: bool, role: Role) -> Choice:
    quantized = "a GGUF" if from_gguf else f"a {config.quant_method} checkpoint" if config.quant_method else None
    if settings.quant not in ("auto", "none"):
        if quantized:
            raise SettingsError(
                f"--quant {settings.quant} can't be applied: {quantized} is already quantized", "omit --quant"
            )
        has_blocks = device == "cpu" and "avx512_bf16" in cpu_flags() and settings.quant in ("nf4", "fp4")
        is_packed = settings.quant == "nf4" and may_pack_nf4(settings, config, device)
        if has_blocks and not is_packed and not config.widths_fit_blocks:
            raise SettingsError(
                f"--quant {settings.quant} can't be applied on this CPU: layer widths must be multiples of 64",
                "use --quant none or int8",
            )
        return settings.quant, ()
    if settings.quant == "none" or quantized:
        return "none", ()
    if device == "cpu" and role == "draft" and not has_fast_bf16_cpu() and has_int8_matmul():
        return "int8", ()
    if not config.widths_fit_blocks:
        return "none", ()
    # On other CPUs, bitsandbytes unpacks nf4 before each product: smaller, but slower than float32.
    if device.startswith("cuda") or (device == "cpu" and "avx512_bf16" in cpu_flags()):
        return "nf4", ()
    return "none", ()


def _fastest(config: ModelConfig, layer: TimedLayer | None, times: CostStore | None) -> Choice | None:
    """Measures a model's fastest format; None if it is quantized already, or too small for products to matter."""
    if config.quant_method or layer is None or config.num_parameters < LEAST_MEASURED:
        return None
    device, formats = layer.device, ["none"]
    if device == "cpu" and has_int8_matmul():
        formats.append("int8")
    # On other CPUs, bitsandbytes unpacks 4-bit weights before each product, which can't be fast.
    has_kernel = layer.packs_nf4 or "avx512_bf16" in cpu_flags()
    if device == "cpu" and has_kernel and config.widths_fit_blocks:
        formats.append("nf4")
    if device.startswith("cuda") and config.widths_fit_blocks:
        # Not int8: bitsandbytes computes it in five kernels a product, so it takes longer than nf4 and bfloat16.
        formats = ["none", "nf4"]
    needed = {name: _needed_bytes(config, layer, name) for name in formats}
    free, smallest = free_bytes(device), min(formats, key=lambda name: needed[name])
    formats = [name for name in formats if name == smallest or free is None or needed[name] <= free * USABLE]
    if len(formats) == 1:
        return formats[0], ()
    quant, reason = fastest_format(formats, layer, measure_formats, times)
    return quant, (reason,)


def _needed_bytes(config: ModelConfig, layer: TimedLayer, quant: str) -> int:
    if layer.device != "cpu":
        return cuda_bytes(config, layer.dtype, quant, is_draft=layer.role == "draft")
    stored = {"none": layer.packed_dtype, "nf4": "float32" if layer.packs_nf4 else None}.get(quant)
    return needed_bytes(config, stored or layer.dtype, quant, layer.device, is_draft=layer.role == "draft")


def _is_spread(settings: ModelSettings, config: ModelConfig, device: str, dtype: str, quant: str) -> bool:
    """Returns whether `auto` needs several GPUs. A model too large for all of them is refused, never put on the CPU."""
    if settings.device != "auto" or not device.startswith("cuda") or torch.cuda.device_count() < 2:
        return False
    needed = cuda_bytes(config, dtype, quant)
    free = [free_bytes(f"cuda:{index}") or 0 for index in range(torch.cuda.device_count())]
    if needed <= free[0] * USABLE:
        return False
    if needed > sum(free) * USABLE:
        raise shortage(settings.name, "all CUDA devices", needed, quant)
    return True
