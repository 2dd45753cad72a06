"""Reads a config.json key by key, and refuses keys that were not read: they may change the output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_INTEGER = 2**24
"""No model has more rows, layers or channels; the largest vocabulary has 262,400 rows."""


class UnsupportedConfig(Exception):
    """A config that a `DecoderSpec` can't describe. Its text names the key and the value."""


_IGNORED = frozenset(
    (
        *("architectures", "auto_map", "dtype", "torch_dtype", "model_type", "transformers_version"),
        *("use_cache", "cache_implementation", "attn_implementation"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "tokenizer_class", "initializer_range"),
        *("attention_dropout", "resid_pdrop", "embd_pdrop", "hidden_dropout", "dropout", "max_position_embeddings"),
        *("output_attentions", "output_hidden_states", "return_dict", "num_logits_to_keep", "chunk_size_feed_forward"),
        *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params", "prefix"),
        *(
            "is_llama_config",
            "unsloth_version",
            "unsloth_fixed",
            "transformers.js_config",
        ),
        *("transformers_weights", "max_window_layers", "is_encoder_decoder"),
    )
)
"""Keys that do not change the output: of training, of tokens, of the library, or read elsewhere."""


_REQUIRED_VALUES: Mapping[str, tuple[object, ...]] = {
    "pretraining_tp": (None, 1),
    "rope_interleaved": (None, False),
    "sliding_window": (None,),
    "use_bidirectional_attention": (None, False),
    "is_decoder": (None, False, True),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "mlp_bias": (None, False),
    "attention_bias": (None, False),
}
"""Keys that may stand in a config with these values only, unless the family reads them."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the text part of a config for vision and text, else the config."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def is_number(value: object) -> bool:
    """Returns whether a JSON value is a finite number. `json.loads` reads NaN, infinities and integers of any size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**53 if isinstance(value, int) else math.isfinite(value)


class ConfigReader:
    """Reads keys of a config and remembers which."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the value of a key; `default` where it is missing or null."""
        self.read.add(key)
        value = self.config.get(key)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a number.

        Raises:
            UnsupportedConfig: It is missing or of another type.
        """
        value = self.get(key, default)
        if not is_number(value):
            raise UnsupportedConfig(f"{key} is {value!r}")
        return float(value)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """Returns a whole number of at least `minimum`; see `number`."""
        value = self.number(key, default)
        if not value.is_integer() or not minimum <= value <= MAX_INTEGER:
            raise UnsupportedConfig(f"{key} is {self.get(key)!r}")
        return int(value)

    def optional(self, key: str) -> float | None:
        """Returns a number, or None where it is missing or null."""
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Returns a boolean; see `number`."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise UnsupportedConfig(f"{key} is {value!r}")
        return value

    def check_rest(self) -> None:
        """Refuses keys that nothing has read.

        Raises:
            UnsupportedConfig: One of them may change the output.
        """
        for key in sorted(self.config.keys() - self.read - _IGNORED):
            if key.startswith("_"):  # notes of the library that wrote the file
                continue
            value = self.config[key]
            if key not in _REQUIRED_VALUES or value not in _REQUIRED_VALUES[key]:
                raise UnsupportedConfig(f"{key} is {value!r}")
