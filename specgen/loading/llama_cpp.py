"""Loads the weights of a checked GGUF file with llama.cpp."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specgen.core.errors import DeviceError, MemoryShortageError, ModelFileError, SettingsError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.results import ModelInfo
from specgen.core.settings import ModelSettings
from specgen.core.units import format_size
from specgen.loading.gguf.header import GgufHeader
from specgen.loading.llama_cpp_library import llama_library, messages
from specgen.loading.memory import free_bytes
from specgen.loading.resolved_model import ResolvedModel

PROBE = "The café isn't open — 3,141 × 2 = 6282.\n\n\tdef f(x):  return x # 日本語 🙂\r\n   <|im_start|>user don't\n"
"""Text on which tokenizers differ: digits, white space, apostrophes, accents, other scripts, control strings."""


class LlamaWeights:
    """Weights loaded by llama.cpp; freed with this object, or at the end of the program.

    Args:
        library: The module `llama_cpp.llama_cpp`.
        pointer: The model.
    """

    def __init__(self, library: Any, pointer: Any) -> None:
        self.library = library
        self.pointer = pointer
        self._vocab = library.llama_model_get_vocab(pointer)
        self.num_embeddings = int(library.llama_vocab_n_tokens(self._vocab))
        weakref.finalize(self, library.llama_model_free, pointer)

    def last_message(self) -> str:
        """Returns llama.cpp's last error message, as one printable line; may be empty."""
        return messages.errors[-1] if messages.errors else ""

    def tokenize(self, text: str) -> list[int]:
        """Encodes a text with llama.cpp's tokenizer: control strings become control tokens, nothing is added."""
        data = text.encode()
        ids = (self.library.llama_token * (len(data) + 8))()
        count = self.library.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, True)
        assert count >= 0, "a text has no more tokens than bytes"
        return list(ids[:count])

    def token_text(self, token: int) -> str:
        """Returns the string of a token in the file."""
        return str(self.library.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class LoadedGguf:
    """A GGUF in memory.

    Args:
        weights: Ready for `LlamaCppModel`.
        info: What really runs.
        notices: What the user should know, one line each.
    """

    weights: LlamaWeights
    info: ModelInfo
    notices: tuple[str, ...] = ()


def load_gguf(resolved: ResolvedModel, num_threads: int, progress: ProgressListener = SILENT) -> LoadedGguf:
    """Loads a GGUF file with llama.cpp.

    Args:
        resolved: The model; its header was checked by `scan_gguf`, so llama.cpp never sees an unchecked file.
        num_threads: For the banner.
        progress: Receives the progress of loading.

    Raises:
        ModelFileError: llama.cpp can't read the file.
        DeviceError: llama.cpp or the requested GPU is missing.
        MemoryShortageError: The weights don't fit.
    """
    assert resolved.gguf is not None
    path, header = resolved.gguf.path, resolved.gguf.header
    settings, name = resolved.settings, resolved.name
    library = llama_library()
    layers = gpu_layers(settings, can_offload=bool(library.llama_supports_gpu_offload()))
    needed, free = header.num_weight_bytes, free_bytes("cpu")
    notices: tuple[str, ...] = ()
    if layers == 0 and free is not None and needed > free:
        notices = (f"{name} needs about {format_size(needed)}, {format_size(free)} are free: the system may stop it",)
    progress.stage(f"loading {resolved.role} {name}")
    messages.errors.clear()
    params = library.llama_model_default_params()
    params.n_gpu_layers = layers
    if settings.device.startswith("cuda:"):
        params.main_gpu = int(settings.device.removeprefix("cuda:"))
        params.split_mode = library.LLAMA_SPLIT_MODE_NONE
    pointer = library.llama_model_load_from_file(str(path).encode(errors="surrogateescape"), params)
    if not pointer:
        raise _failed(path, header)
    weights = LlamaWeights(library, pointer)
    if library.llama_model_has_encoder(pointer) or library.llama_model_is_diffusion(pointer):
        raise ModelFileError(f"{path} is a {header.architecture} model, which does not generate text token by token")
    return LoadedGguf(weights, _info(header, name, layers, num_threads), notices)


def gpu_layers(settings: ModelSettings, *, can_offload: bool) -> int:
    """Returns the number of layers for the GPU; -1 means all.

    Raises:
        SettingsError: GPU layers are requested together with `--device cpu`.
        DeviceError: A GPU is requested, but this build of llama.cpp does not support GPUs.
    """
    if settings.backend.gpu_layers and settings.device == "cpu":
        raise SettingsError(
            f"--gpu-layers {settings.backend.gpu_layers} and --device cpu exclude each other", "omit one of them"
        )
    is_gpu_requested = settings.backend.gpu_layers or settings.device not in ("auto", "cpu")
    if is_gpu_requested and not can_offload:
        option = (
            f"--gpu-layers {settings.backend.gpu_layers}"
            if settings.backend.gpu_layers
            else f"--device {settings.device}"
        )
        raise DeviceError(
            f"{option} needs a GPU, but this build of llama-cpp-python does not support GPUs",
            "build it with GPU support: CMAKE_ARGS=-DGGML_CUDA=on pip install --no-binary :all: llama-cpp-python",
        )
    if settings.backend.gpu_layers is not None:
        return settings.backend.gpu_layers
    return -1 if can_offload and settings.device != "cpu" else 0


def tokenizer_notice(tokenizer: Any, weights: LlamaWeights) -> str | None:
    """Returns a warning if transformers and llama.cpp encode the same text differently; None if they agree."""
    ours, theirs = tokenizer.encode(PROBE, add_special_tokens=False), weights.tokenize(PROBE)
    if ours == theirs:
        return None
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
    return (
        f"transformers' tokenizer for this GGUF differs from llama.cpp's (a test text from token {first} on): "
        "the answer may be slightly worse"
    )


def _failed(path: Path, header: GgufHeader) -> ModelFileError | MemoryShortageError:
    # The last message only says that loading failed; the reason is in an earlier one.
    message = next((line for line in messages.errors if "error loading model" in line), "")
    reason = message.partition("error loading model: ")[2] or message or "llama.cpp gave no reason"
    if "alloc" in reason or "memory" in reason:
        return MemoryShortageError(
            f"not enough memory for {path}: {reason}", "use a smaller model, or fewer --gpu-layers"
        )
    return ModelFileError(
        f"llama.cpp can't load {path} ({header.architecture}, {header.quantization}): {reason}",
        "download it again, or try --backend torch",
    )


def _info(header: GgufHeader, name: str, layers: int, num_threads: int) -> ModelInfo:
    placed = {0: "", -1: ", all layers on the GPU"}.get(layers, f", {layers} layers on the GPU")
    return ModelInfo(
        name=name,
        quant=header.quantization,
        dtype="mixed",
        device="gpu" if layers else "cpu",
        num_parameters=header.num_parameters,
        num_bytes=header.num_weight_bytes,
        remark=f"llama.cpp, {num_threads} thread{'s' if num_threads > 1 else ''}{placed}",
    )
