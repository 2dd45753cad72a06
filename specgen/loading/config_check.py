"""Checks a model folder before transformers reads it: config.json and the headers of the weight files, no weights.

A config can name foreign code, name files outside the folder, or describe another model than the weights. So it is
read as plain JSON first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from specgen.core.errors import ModelFileError
from specgen.core.model_files import read_json
from specgen.core.settings import BackendName
from specgen.loading.architecture_check import generating_type, refuse_other_heads
from specgen.loading.config_reader import MAX_INTEGER, UnsupportedConfig, text_config
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.resolved_model import ModelConfig
from specgen.loading.rotary_config import scaled_window
from specgen.loading.safetensors_check import check_safetensors
from specgen.loading.weight_files import hint_for_content, weight_files
from specgen.models.decoder_spec import DecoderSpec

DRAFT_HEAD_KEY = "specgen_draft"
"""In a config: the folder is a draft head (`specgen.loading.draft_head_folder`), not a complete model."""

_WIDTH_KEYS = ("hidden_size", "intermediate_size")
_SIZE_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
_WINDOW_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
_UNMASKED_WINDOWS = ("moshi",)
"""Types whose code masks no sliding window, while transformers' cache drops the tokens before it: past the window, the
text of `generate` depends on how many tokens a pass has. Moshi's own window is all of its context."""
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def check_folder(folder: Path, backend: BackendName = "auto") -> ModelConfig:
    """Reads and checks the config of a model folder; see `check_config`."""
    return check_config(read_config(folder), folder, backend)


def check_config(config: dict[str, Any], folder: Path, backend: BackendName = "auto") -> ModelConfig:
    """Checks a config that was read, and the headers of the weight files; returns what they say.

    Args:
        backend: With `transformers`, the result does not describe the model for specgen's own decoder.

    Raises:
        ModelFileError: A file is missing, damaged or unsafe, or the model can't be run here.
    """
    if DRAFT_HEAD_KEY in config:
        raise ModelFileError(
            f"{folder} is a draft head, which runs only with the target it was made for",
            "use it with --draft, together with its target",
        )
    text = text_config(config)
    _refuse_mlx(config, folder)
    _refuse_nameless_quantization((config, text), folder)
    refuse_other_heads(config, folder)
    method = _quant_method((config, text))
    decoder, unsupported = _decoder(config, method)
    model_type = config["model_type"] if decoder is not None else generating_type(config, folder)
    names = tuple(weight_files(folder, config))
    files = [check_safetensors(folder / name) for name in names]
    dtypes = sum((file.dtypes for file in files), Counter[str]())
    stored = dtypes.most_common(1)[0][0] if dtypes else "F32"
    hidden, inner = (_number((text, config), (key,)) for key in _WIDTH_KEYS)
    return ModelConfig(
        model_type=model_type,
        vocab_rows=_number((text, config), ("vocab_size",)),
        max_positions=_window(config, text),
        quant_method=method,
        dtype=_TORCH_NAMES.get(stored, stored.lower()),
        num_parameters=dtypes.total(),
        num_weight_bytes=sum(file.num_bytes for file in files),
        widths_fit_blocks=all((width or 64) % 64 == 0 for width in (hidden, inner)),
        widths=None if hidden is None or inner is None else (hidden, inner),
        weight_files=names,
        decoder=None if backend == "transformers" else decoder,
        unsupported=unsupported,
        values=config,
    )


def _window(config: Mapping[str, Any], text: Mapping[str, Any]) -> int | None:
    """Returns the positions that a config names; None if it names none."""
    window = scaled_window(text, _number((text, config), _WINDOW_KEYS))
    sliding = _number((text, config), ("sliding_window",))
    if window is not None and sliding is not None and config.get("model_type") in _UNMASKED_WINDOWS:
        return min(window, sliding)
    return window


def _decoder(config: dict[str, Any], method: str | None) -> tuple[DecoderSpec | None, str]:
    """Returns how specgen's decoder runs a config, or the key that it does not support."""
    if method is not None:
        return None, f"quantization_config names {method!r}"
    try:
        return decoder_spec(config), ""
    except UnsupportedConfig as error:
        return None, str(error)


def has_weights(folder: Path) -> bool:
    """Returns whether the config and all weight files exist; opens no weight file."""
    try:
        names = weight_files(folder, read_config(folder))
    except ModelFileError:
        return False
    return all((folder / name).is_file() for name in names)


def check_sizes(config: dict[str, Any], folder: Path) -> None:
    """Refuses sizes that are not plausible.

    Raises:
        ModelFileError: A size is not a positive number, or far too large.
    """
    for sizes in (config, text_config(config)):
        for key in _SIZE_KEYS:
            value = sizes.get(key)
            # Gemma 3n has a width per layer.
            values = value if isinstance(value, list) and value else [value]
            if value is not None and not all(type(size) is int and 1 <= size <= MAX_INTEGER for size in values):
                raise ModelFileError(f"invalid {key} in {folder / 'config.json'}: {value!r}")
        if sizes.get("sliding_window") == 0 and "gemma" in str(sizes.get("model_type")):  # elsewhere it means none
            raise ModelFileError(f"invalid sliding_window in {folder / 'config.json'}: 0")


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a folder's config.json.

    Raises:
        ModelFileError: It is missing or damaged, names foreign code, or its sizes are not plausible.
    """
    path = folder / "config.json"
    if not path.exists():
        raise ModelFileError(f"{folder} is not a model folder: config.json is missing", hint_for_content(folder))
    config = read_json(path)
    _refuse_kernels(config, folder)
    check_sizes(config, folder)
    return config


def _number(sources: Iterable[Mapping[str, Any]], keys: tuple[str, ...]) -> int | None:
    for source in sources:
        for key in keys:
            if type(value := source.get(key)) is int and value > 0:
                return int(value)
    return None


def _quant_method(sources: Iterable[Mapping[str, Any]]) -> str | None:
    for source in sources:
        found = source.get("quantization_config")
        if isinstance(found, dict):
            return str(found.get("quant_method") or "unknown")
    return None


def _refuse_mlx(config: dict[str, Any], folder: Path) -> None:
    """Refuses weights that MLX quantized: its config names sizes and no method."""
    found = config.get("quantization", config.get("quantization_config"))
    if isinstance(found, dict) and {"bits", "group_size"} <= found.keys() and "quant_method" not in found:
        raise ModelFileError(
            f"{folder} is quantized for MLX, which runs on Apple's processors", "use the original model or its GGUF"
        )


def _refuse_nameless_quantization(sources: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Refuses a quantization whose method is not named, as transformers does: its weights can't be read."""
    for source in sources:
        found = source.get("quantization_config")
        if not isinstance(found, dict) or found.get("quant_method"):
            continue
        # bitsandbytes is recognized by these.
        if not (found.get("load_in_8bit") or found.get("load_in_4bit")):
            raise ModelFileError(
                f"quantization_config in {folder / 'config.json'} names no quant_method",
                "remove it if the weights are not quantized, else name their method",
            )


def _refuse_kernels(config: dict[str, Any], folder: Path) -> None:
    """Refuses a config that names an attention or expert kernel on the hub, which is foreign native code (F23)."""
    for key, value in _items(config):
        if "attn_implementation" in key or "experts_implementation" in key:
            for text in _texts(value):
                if any(char in text for char in "/@|:"):
                    raise ModelFileError(
                        f"{folder / 'config.json'} requests foreign code: {key} is {text!r}",
                        "remove that line from config.json if you trust the rest of the model",
                    )


def _items(value: object) -> Iterator[tuple[str, object]]:
    """Yields all keys and values of nested JSON; json.loads limits the depth to about 1000 levels."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield from item.items()
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *_texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
