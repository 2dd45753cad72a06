"""Decides where a model runs, in which compute type and weight format, and says why. Loads nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from specgen.core.errors import DeviceError, SettingsError
from specgen.core.library_errors import first_line
from specgen.core.machine import cpu_flags
from specgen.core.settings import ModelSettings
from specgen.loading.config_check import ConfigFacts
from specgen.loading.format_autotune import LEAST_MEASURED, fastest_format
from specgen.loading.memory import free_bytes, needed_bytes, shortage

if TYPE_CHECKING:
    import torch

INSTALL_BITSANDBYTES = "install it with: pip install 'bitsandbytes>=0.49', or use --quant none"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a model is loaded.

    Args:
        device: `cpu`, `mps`, `cuda:0`.
        spread: Layers go over all CUDA devices; `device` is the first of them.
        dtype: Compute type, `bfloat16`.
        quant: `none`, `int8`, `nf4` or `fp4`: what is done to the weights at load.
        remarks: Why an `auto` was decided so.
        narrow: Weights narrower than the arithmetic, which is float32: see `specgen.models.formats`.
    """

    device: str
    spread: bool
    dtype: str
    quant: str
    remarks: tuple[str, ...]
    narrow: Literal["half", "byte"] | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as torch names it."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def choose_placement(
    settings: ModelSettings, facts: ConfigFacts, *, from_gguf: bool, role: Literal["target", "draft"] = "target"
) -> Placement:
    """Decide device, compute type and weight format of a model.

    Args:
        settings: What is asked for.
        facts: What the model is.
        from_gguf: It was converted from a GGUF, which is already quantized.
        role: A draft may have products that a target may not: what it computes never decides the text.

    Raises:
        DeviceError: The device asked for, or bitsandbytes, is missing or unusable.
        SettingsError: A weight format is asked for that the checkpoint rules out.
    """
    device, remarks = _device(settings.device)
    dtype, why = _dtype(settings, device)
    remarks += why
    quant, why = _quant(settings, facts, device, from_gguf, role)
    if settings.quant == "auto" and role == "draft" and not from_gguf:
        quant, why = _fastest(facts, device, dtype) or (quant, why)
    narrow: Literal["half", "byte"] | None = None
    if device == "cpu" and facts.quant_method is None:
        if quant == "int8" and role == "draft" and has_int8_matmul():
            return Placement(device, False, "float32", quant, why, "byte")
        if quant == "none" and dtype == "float16" and has_float16_matmul():
            narrow = "half"
    if quant != "none":
        try:
            check_bitsandbytes(quant, device)
        except DeviceError as error:
            if settings.quant != "auto":
                raise
            quant, why = "none", (f"not quantized: {error.message}",)
    remarks += why
    return Placement(device, _is_spread(settings, facts, device, dtype, quant), dtype, quant, remarks, narrow)


def has_fast_bf16_cpu() -> bool:
    """Whether the processor multiplies bfloat16 itself. Without it, bfloat16 is slower than float32."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def has_float16_matmul() -> bool:
    """Whether products of float32 with float16 weights are fast here."""
    from specgen.models import formats as narrow

    return narrow.has_float16_matmul()


def has_int8_matmul() -> bool:
    """Whether products with int8 weights, good enough for drafts, are fast here."""
    from specgen.models import formats as narrow

    return narrow.has_int8_matmul()


def check_bitsandbytes(quant: str, device: str) -> None:
    """Quantize one tiny tensor, so that an unusable library is told before gigabytes are read (F36, F37).

    Raises:
        DeviceError: bitsandbytes is missing, or has no code for this device.
    """
    import torch

    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise DeviceError("bitsandbytes is not installed", INSTALL_BITSANDBYTES) from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise DeviceError(f"bitsandbytes is unusable: {first_line(error)}", INSTALL_BITSANDBYTES) from error
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


def _device(wanted: str) -> tuple[str, tuple[str, ...]]:
    import torch

    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", wanted):
        raise SettingsError(f"--device {wanted} is no device", "give auto, cpu, cuda, cuda:1 or mps")
    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        if num_cuda:
            return "cuda:0", ()
        if torch.backends.mps.is_available():
            return "mps", ()
        # A CUDA build that finds no device is worth a word: often the driver is too old.
        return "cpu", (("no usable CUDA device",) if torch.version.cuda else ())
    if wanted.startswith("cuda"):
        index = int(wanted.partition(":")[2] or 0)
        if num_cuda == 0:
            built = "check the driver with nvidia-smi" if torch.version.cuda else "this torch is built without CUDA"
            raise DeviceError(f"--device {wanted}: no CUDA device here", f"{built}; or use --device cpu")
        if index >= num_cuda:
            raise DeviceError(f"--device {wanted}: only {num_cuda} CUDA devices here", "they are counted from 0")
        return f"cuda:{index}", ()
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("--device mps: no Apple GPU here", "use --device cpu")
    return wanted, ()


def _dtype(settings: ModelSettings, device: str) -> tuple[str, tuple[str, ...]]:
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
    import torch

    # Asked per device: the first one may be newer than this one.
    if torch.cuda.get_device_capability(torch.device(device)) >= (8, 0) or torch.version.hip:
        return "bfloat16", ()
    return "float16", ("float16: this GPU has no bfloat16",)


def _quant(
    settings: ModelSettings, facts: ConfigFacts, device: str, from_gguf: bool, role: Literal["target", "draft"]
) -> tuple[str, tuple[str, ...]]:
    ready = "a GGUF" if from_gguf else f"a {facts.quant_method} checkpoint" if facts.quant_method else None
    if settings.quant not in ("auto", "none"):
        if ready:
            raise SettingsError(
                f"--quant {settings.quant} can't be applied: {ready} is already quantized", "leave --quant out"
            )
        is_packed = device == "cpu" and "avx512_bf16" in cpu_flags() and settings.quant in ("nf4", "fp4")
        if is_packed and not facts.widths_fit_blocks:
            raise SettingsError(
                f"--quant {settings.quant} can't be applied on this CPU: the layers' widths are no multiples of 64",
                "use --quant none or int8",
            )
        return settings.quant, ()
    if settings.quant == "none" or ready:
        return "none", ()
    if device == "cpu" and role == "draft" and not has_fast_bf16_cpu() and has_int8_matmul():
        return "int8", ()
    if not facts.widths_fit_blocks:
        return "none", ()
    # On a CPU without AVX512-BF16, nf4 is unpacked before each product: smaller, but slower than float32.
    if device.startswith("cuda") or (device == "cpu" and "avx512_bf16" in cpu_flags()):
        return "nf4", ()
    return "none", ()


def _fastest(facts: ConfigFacts, device: str, dtype: str) -> tuple[str, tuple[str, ...]] | None:
    """A draft's format by measurement; None for one that is ready quantized, or too small for products to matter."""
    if facts.quant_method or facts.widths is None or facts.num_parameters < LEAST_MEASURED:
        return None
    formats = ["none"]
    if device == "cpu" and has_int8_matmul():
        formats.append("int8")
    # Elsewhere on CPUs 4-bit weights are unpacked before each product, which can't be fast.
    if device == "cpu" and "avx512_bf16" in cpu_flags() and facts.widths_fit_blocks:
        formats.append("nf4")
    if device.startswith("cuda") and facts.widths_fit_blocks:
        formats = [name for name in ("none", "int8", "nf4") if name == "nf4" or _fits(facts, device, dtype, name)]
    if len(formats) == 1:
        return formats[0], ()
    quant, why = fastest_format(formats, facts.widths, dtype, device)
    return quant, (why,)


def _fits(facts: ConfigFacts, device: str, dtype: str, quant: str) -> bool:
    free = free_bytes(device)
    return free is None or needed_bytes(facts, dtype, quant) <= free * 0.9


def _is_spread(settings: ModelSettings, facts: ConfigFacts, device: str, dtype: str, quant: str) -> bool:
    """Whether `auto` must take several GPUs. What does not fit them all is refused, never put on the CPU in silence."""
    import torch

    if settings.device != "auto" or not device.startswith("cuda") or torch.cuda.device_count() < 2:
        return False
    needed = needed_bytes(facts, dtype, quant)
    free = [free_bytes(f"cuda:{index}") or 0 for index in range(torch.cuda.device_count())]
    # A tenth for the cache, the activations and the allocator.
    if needed <= free[0] * 0.9:
        return False
    if needed > sum(free) * 0.9:
        raise shortage(settings.name, "all CUDA devices", needed, quant)
    return True
