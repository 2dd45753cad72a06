"""Loads the weights of a checked GGUF file with llama.cpp, whose messages go to a logger instead of stderr."""

from __future__ import annotations

import ctypes
import importlib
import logging
import weakref
from collections import deque
from functools import lru_cache
from typing import Any

import torch

from specgen.core.errors import DeviceError, MemoryShortageError, ModelFileError, SettingsError, first_line
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.results import ModelInfo
from specgen.core.settings import ModelSettings
from specgen.core.units import format_size
from specgen.engine.contract import LanguageModel
from specgen.loading.gguf.absent_ids import NO_ID
from specgen.loading.gguf.metadata import GgufHeader
from specgen.loading.libraries import INSTALL_LLAMA_CPP
from specgen.loading.memory import free_bytes
from specgen.loading.resolved_model import GgufFile, LoadedModel, ResolvedModel
from specgen.models.llama_cpp import LlamaCppModel

_LEVELS = {2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
"""Levels of ggml.h; the table in llama-cpp-python is outdated."""
_ERROR, _CONTINUED = 4, 5

_logger = logging.getLogger("llama.cpp")
# Without a handler, Python prints warnings to stderr.
_logger.addHandler(logging.NullHandler())
PROBE = "The café isn't open — 3,141 × 2 = 6282.\n\n\tdef f(x):  return x # 日本語 🙂\r\n   <|im_start|>user don't\n"
"""Text on which tokenizers differ: digits, white space, apostrophes, accents, other scripts, control strings."""


class _Messages:
    """Receives llama.cpp's messages. They quote strings of the model file, so unprintable characters are removed."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=8)
        self._level = 0

    def receive(self, level: int, text: bytes | None, _data: object) -> None:
        if level != _CONTINUED:
            self._level = level
        line = printable((text or b"").decode("utf-8", "replace"))
        if not line:
            return
        if self._level == _ERROR:
            self.errors.append(line)
        _logger.log(_LEVELS.get(self._level, logging.DEBUG), "%s", line)


messages = _Messages()
_callbacks: list[Any] = []
"""The C function that calls `messages.receive`: llama.cpp uses its address until the process ends."""


def printable(text: str) -> str:
    """Returns one line of at most 300 printable characters."""
    line = "".join(char if char.isprintable() else " " for char in text).strip()
    return line if len(line) <= 300 else line[:297] + "..."


@lru_cache(maxsize=1)
def llama_library() -> Any:
    """Imports `llama_cpp.llama_cpp` and redirects its log.

    Raises:
        DeviceError: It is not installed or can't be loaded.
    """
    try:
        library: Any = importlib.import_module("llama_cpp.llama_cpp")
    except ImportError as error:
        raise DeviceError(f"llama-cpp-python can't be imported: {first_line(error)}", INSTALL_LLAMA_CPP) from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise DeviceError(f"llama-cpp-python is unusable: {first_line(error)}", INSTALL_LLAMA_CPP) from error
    callback = library.llama_log_callback(messages.receive)
    _callbacks.append(callback)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    library.llama_backend_init()
    return library


class LlamaWeights:
    """Weights loaded by llama.cpp; freed with this object, or at the end of the program.

    Args:
        library: The module `llama_cpp.llama_cpp`.
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


def load_gguf(resolved: ResolvedModel, num_tokens: int, progress: ProgressListener = SILENT) -> LoadedModel:
    """Loads a GGUF file with llama.cpp.

    Args:
        resolved: The model; `scan_gguf` checked its header, so llama.cpp never sees an unchecked file.
        num_tokens: Logits are cut to this width.

    Raises:
        ModelFileError: llama.cpp can't read the file, or would end the process.
        DeviceError: llama.cpp or the requested GPU is missing.
        MemoryShortageError: The weights don't fit.
    """
    gguf, context_size = resolved.gguf, resolved.config.max_positions
    assert gguf is not None, "the format says so"
    assert context_size is not None, "`check_gguf` sets it"
    settings, name = resolved.settings, resolved.name
    if gguf.header.obstacle is not None:
        raise ModelFileError(f"llama.cpp can't run {gguf.path}: {gguf.header.obstacle}", "try --backend torch")
    library = llama_library()
    layers = gpu_layers(settings, can_offload=bool(library.llama_supports_gpu_offload()))
    num_threads = settings.backend.threads or default_num_threads()
    notices = list(gguf.header.notices)
    needed, free = gguf.header.num_weight_bytes, free_bytes("cpu")
    if layers == 0 and free is not None and needed > free:
        sizes = f"{format_size(needed)}, {format_size(free)} are free"
        notices.append(f"{name} needs about {sizes}: the system may stop it")
    progress.stage(f"loading {resolved.role} {name}")
    weights = read_weights(gguf, layers, settings.device)
    if resolved.role == "target" and (notice := tokenizer_notice(resolved.tokenizer, weights)):
        notices.append(notice)
    model = LlamaCppModel(weights, num_tokens, context_size, num_threads)
    return LoadedModel(model, _info(gguf.header, name, layers, num_threads), tuple(notices))


def read_weights(gguf: GgufFile, num_gpu_layers: int, device: str) -> LlamaWeights:
    """Reads the weights of a file; see `load_gguf`."""
    library = llama_library()
    messages.errors.clear()
    params = library.llama_model_default_params()
    params.n_gpu_layers = num_gpu_layers
    if device.startswith("cuda:"):
        params.main_gpu = int(device.removeprefix("cuda:"))
        params.split_mode = library.LLAMA_SPLIT_MODE_NONE
    # Tensors that are used where they are in the file must be aligned for the CPU.
    if gguf.header.alignment % 32:
        params.load_mode = library.LLAMA_LOAD_MODE_NONE
    overrides = _without_absent_ids(library, gguf)
    if overrides is not None:
        params.kv_overrides = overrides
    pointer = library.llama_model_load_from_file(str(gguf.path).encode(errors="surrogateescape"), params)
    if not pointer:
        raise _failed(gguf)
    weights = LlamaWeights(library, pointer)
    if library.llama_model_has_encoder(pointer) or library.llama_model_is_diffusion(pointer):
        raise ModelFileError(
            f"{gguf.path} is a {gguf.header.architecture} model, which does not generate text token by token"
        )
    return weights


def _without_absent_ids(library: Any, gguf: GgufFile) -> Any:
    """Returns overrides of keys that say "no such token" in a signed type, which llama.cpp refuses; None: no such key.

    llama.cpp replaces an id that is not in the table by its default, as for a missing key.
    """
    keys = [absent.key for absent in gguf.header.absent_ids if absent.is_signed]
    if not keys:
        return None
    overrides = (library.llama_model_kv_override * (len(keys) + 1))()  # a zero entry ends the list
    for override, key in zip(overrides, keys, strict=False):
        override.tag = library.LLAMA_KV_OVERRIDE_TYPE_INT
        override.key = key.encode()
        override.value.val_i64 = NO_ID
    return overrides


def gpu_layers(settings: ModelSettings, *, can_offload: bool) -> int:
    """Returns the number of layers for the GPU; -1 means all.

    Raises:
        SettingsError: GPU layers are requested together with `--device cpu`.
        DeviceError: A GPU is requested, but this build of llama.cpp does not support GPUs.
    """
    layers, device = settings.backend.gpu_layers, settings.device
    if layers and device == "cpu":
        raise SettingsError(f"--gpu-layers {layers} and --device cpu exclude each other", "omit one of them")
    if (layers or device not in ("auto", "cpu")) and not can_offload:
        option = f"--gpu-layers {layers}" if layers else f"--device {device}"
        raise DeviceError(
            f"{option} needs a GPU, but this build of llama-cpp-python does not support GPUs",
            "build it with GPU support: CMAKE_ARGS=-DGGML_CUDA=on pip install --no-binary :all: llama-cpp-python",
        )
    if layers is not None:
        return layers
    return -1 if can_offload and device != "cpu" else 0


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


def _failed(gguf: GgufFile) -> ModelFileError | MemoryShortageError:
    # The last message only says that loading failed; the reason is in an earlier one.
    message = next((line for line in messages.errors if "error loading model" in line), "")
    reason = message.partition("error loading model: ")[2] or message or "llama.cpp gave no reason"
    if "alloc" in reason or "memory" in reason:
        return MemoryShortageError(
            f"not enough memory for {gguf.path}: {reason}", "use a smaller model, or fewer --gpu-layers"
        )
    hint = "download it again, or use another GGUF of the model"
    if "unknown model architecture" in reason:
        hint = "upgrade it (pip install -U llama-cpp-python), or use the model's folder with safetensors"
    return ModelFileError(
        f"llama.cpp can't load {gguf.path} ({gguf.header.architecture}, {gguf.header.quantization}): {reason}", hint
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


@lru_cache(maxsize=1)
def default_num_threads() -> int:
    """Returns torch's number of threads at start: the physical cores, or OMP_NUM_THREADS."""
    return torch.get_num_threads()


def limit_torch_threads(*models: LanguageModel | None) -> None:
    """Leaves all cores to llama.cpp if no model here runs on torch.

    torch's threads spin for a while after each sum over the vocabulary, just when llama.cpp's threads start.
    """
    num_threads = default_num_threads()
    uses_torch = any(model is not None and not isinstance(model, LlamaCppModel) for model in models)
    torch.set_num_threads(num_threads if uses_torch else 1)
