"""Defines what the header of a GGUF file says of its model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AbsentId:
    """A key that names a special token the file does not have.

    Args:
        key_end: Position in the file after the key's last byte.
        is_signed: The value is of a signed type, which llama.cpp refuses.
    """

    key: str
    key_end: int
    is_signed: bool


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The metadata of a GGUF file.

    Args:
        architecture: llama.cpp's name, `llama`.
        quantization: Type of most values, `Q4_K`.
        num_layers: Layers, 0 if unknown.
        num_cache_values: Keys and values per position; 0 if unknown.
        tokenizer_model: Kind of tokenizer, `gpt2`.
        tokenizer_pre: llama.cpp's name of the pre-tokenizer.
        num_parts: How many files the model is split over, as their metadata say.
        part: Which of them this is, from 0.
        end_ids: Tokens that end a text: those of the keys, and those that spell an end of turn.
        metadata_end: Position after the last metadata entry.
        absent_ids: Special tokens that are named, but that the file does not have.
        alignment: Of tensors in the file, in bytes.
        obstacle: Why llama.cpp would end the process that loads the file; None if it would not.
        notices: What is ignored, one line each.
        state_layers: Names of the layers that have states of a recurrence or a convolution.
        layer_state_values: float32 values of the states in such a layer; None if unknown.
    """

    architecture: str
    quantization: str
    num_parameters: int
    num_weight_bytes: int
    num_cache_values: int
    vocab_rows: int | None
    context_length: int | None
    tokenizer_model: str | None
    tokenizer_pre: str | None
    end_ids: tuple[int, ...]
    num_parts: int
    part: int = 0
    metadata_end: int = 0
    absent_ids: tuple[AbsentId, ...] = ()
    alignment: int = 32
    obstacle: str | None = None
    notices: tuple[str, ...] = ()
    state_layers: frozenset[str] = frozenset()
    layer_state_values: int | None = None
    num_layers: int = 0

    @property
    def state_bytes(self) -> int | None:
        """Returns the bytes of all running states of a text; 0 without any, None if unknown."""
        values = self.layer_state_values
        return 0 if not self.state_layers else None if values is None else 4 * len(self.state_layers) * values
