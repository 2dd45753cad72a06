"""Reads and checks the header of a GGUF file before any library reads it. Standard library only.

A length in the file is compared with the remaining bytes before anything is allocated. Rejecting one of the malicious
files of the fault catalogue (F25) takes milliseconds; the libraries ended in MemoryError, IndexError or a hang.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from specgen.core.errors import ModelFileError
from specgen.core.model_files import GGUF_MAGIC, corrupt, describe_content, open_regular
from specgen.loading.gguf.entry_check import MAX_LAYERS, check_entries, check_heads, check_layers
from specgen.loading.gguf.metadata import GgufHeader
from specgen.loading.gguf.other_kinds import refuse_other_kinds
from specgen.loading.gguf.reader import (
    ARRAY,
    GGML_TYPES,
    MAX_ENTRIES,
    MAX_FOREIGN_TYPE,
    MAX_KEY_BYTES,
    MAX_STRING_BYTES,
    REMOVED_TYPES,
    SCALARS,
    STRING,
    Bytes,
    ForeignFileError,
    InconsistentFileError,
)
from specgen.loading.gguf.state_sizes import layer_state_values
from specgen.loading.gguf.token_scan import TokenScan

MAX_ARRAY_STRING_BYTES = 64 * 2**10
MAX_ARRAY_STRINGS = 4_000_000
"""Limit for the strings in all arrays of a file. Gemma 3 has 262,144 tokens and 514,906 merges."""
MAX_ALIGNMENT = 2**20

_SIGNED = frozenset({1, 3, 5, 11})
_TOKEN_ARRAYS = {
    "tokenizer.ggml.tokens": (STRING,),
    "tokenizer.ggml.token_type": (4, 5),
    "tokenizer.ggml.scores": (6,),
}
"""Arrays with one entry per token, and their allowed types."""
_NO_WEIGHTS = frozenset({24, 25, 26, 27, 28})
"""Integers and float64: llama.cpp has no product for them, and reads at address 0."""
_MATRICES = (
    *("_q.weight", "_k.weight", "_v.weight", "_qkv.weight", "_output.weight", "_up.weight", "_gate.weight"),
    *("_down.weight", "output.weight", "token_embd.weight", "_norm.weight", "_exps.weight"),
)


def scan_gguf(path: Path) -> GgufHeader:
    """Reads and checks the header of a GGUF file; does not read tensor data.

    Raises:
        ModelFileError: The file is not a GGUF of version 2 or 3, has types that llama.cpp does not have, is truncated,
            or its header is inconsistent. A file that is whole is never called corrupt.
    """
    with open_regular(path) as file:
        try:
            return _Scan(file).header()
        except ForeignFileError as error:
            raise ModelFileError(f"{path} {error}", error.hint) from error
        except (InconsistentFileError, UnicodeDecodeError) as error:
            why = "text that is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise corrupt(path, why) from error


class _Scan(Bytes):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.strings_left = MAX_ARRAY_STRINGS
        self.vocab_rows: int | None = None
        self.num_weight_bytes = self.num_cache_values = 0
        self.state_layers: set[str] = set()
        self.tokens = TokenScan()
        self.kinds: dict[str, int] = {}
        self.heads: dict[str, tuple[int, ...]] = {}
        self.key_rows: dict[str, int] = {}
        self.uncomputed: str | None = None
        self.names: set[bytes] = set()

    def header(self) -> GgufHeader:
        if self.size == 0:
            raise InconsistentFileError("empty")
        if (magic := self.take(4)) != GGUF_MAGIC:
            start = magic + self.take(min(60, self.size - 4))
            if what := describe_content(start):
                raise ForeignFileError(f"is not a GGUF file but {what}", "give a GGUF file")
            raise InconsistentFileError("does not start with GGUF")
        version = self.u32()
        if version in (2 << 24, 3 << 24):
            raise ForeignFileError("is for big-endian machines", "use the GGUF for other machines")
        if version not in (2, 3):
            raise ForeignFileError(
                f"has version {version} of the format; only versions 2 and 3 are supported",
                "convert the model again with llama.cpp" if version < 2 else "use a file of an older llama.cpp",
            )
        num_tensors, num_pairs = self.u64(), self.u64()
        # The smallest tensor entry is 8 + 4 + 8 + 4 + 8 bytes, the smallest pair 8 + 4 + 1.
        self.check_count("tensors", num_tensors, 32)
        self.check_count("metadata entries", num_pairs, 13)
        pairs = self.metadata(num_pairs)
        metadata_end = self.position
        self.tokens.check(pairs)
        architecture = _text(pairs, "general.architecture") or ""
        num_parts, part = _integer(pairs, "split.count") or 1, _integer(pairs, "split.no") or 0
        refuse_other_kinds(_text(pairs, "general.type"), architecture)
        check_entries(pairs, self.kinds, architecture)
        alignment = pairs.get("general.alignment", 32)
        shares = self.tensors(num_tensors, alignment)
        if num_parts == 1:
            check_layers(self.kinds, pairs, architecture, self.names)
        if not architecture and not (num_parts > 1 and part > 0):  # later parts have no metadata
            raise InconsistentFileError("no general.architecture")
        check_heads(architecture, self.heads, self.key_rows)
        tokenizer_model = _text(pairs, "tokenizer.ggml.model")
        return GgufHeader(
            architecture=architecture,
            quantization=max(shares, key=lambda kind: shares[kind], default="none"),
            num_parameters=sum(shares.values()),
            num_weight_bytes=self.num_weight_bytes,
            num_layers=_integer(pairs, f"{architecture}.block_count") or 0,
            num_cache_values=self.num_cache_values,
            state_layers=frozenset(self.state_layers),
            layer_state_values=layer_state_values(pairs, architecture),
            vocab_rows=self.vocab_rows,
            context_length=_integer(pairs, f"{architecture}.context_length"),
            tokenizer_model=tokenizer_model,
            tokenizer_pre=_text(pairs, "tokenizer.ggml.pre"),
            end_ids=self.tokens.end_ids(pairs),
            num_parts=num_parts,
            part=part,
            metadata_end=metadata_end,
            absent_ids=tuple(self.tokens.absent),
            alignment=alignment if isinstance(alignment, int) else 32,
            obstacle=self.uncomputed or self.tokens.obstacle(tokenizer_model),
            notices=tuple(self.tokens.notices),
        )

    def check_count(self, what: str, count: int, smallest: int) -> None:
        if count > MAX_ENTRIES:
            raise InconsistentFileError(f"claims {count} {what}; at most {MAX_ENTRIES} are allowed")
        if count * smallest > self.size - self.position:
            raise InconsistentFileError(f"claims {count} {what}, more than fit into the file")

    def metadata(self, count: int) -> dict[str, object]:
        """Returns scalars and strings by key; arrays are skipped."""
        pairs: dict[str, object] = {}
        for _ in range(count):
            key = self.string(MAX_KEY_BYTES).decode()
            if key in self.kinds:
                raise InconsistentFileError(f"duplicate key {key!r}")
            key_end = self.position
            kept = key.startswith(("general.", "split.", "tokenizer."))
            self.kinds[key] = kind = self.u32()
            value = self.value(kind, key)
            if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
                self.tokens.named[key] = key_end, kind in _SIGNED
            # Other strings are not kept: a header may contain 65,536 of 16 MiB.
            is_short = isinstance(value, bytes) and len(value) <= (4096 if kept else 64)
            pairs[key] = value if is_short or not isinstance(value, bytes) else None
        return pairs

    def value(self, kind: int, key: str) -> object:
        if kind == STRING:
            return self.string(MAX_STRING_BYTES)
        if kind == ARRAY:
            self.skip_array(key)
            return None
        if kind not in SCALARS:
            raise InconsistentFileError(f"key {key!r} has unknown type {kind}")
        return self.unpack(SCALARS[kind])

    def skip_array(self, key: str) -> None:
        kind, count = self.u32(), self.u64()
        if kind == ARRAY:
            raise InconsistentFileError(f"key {key!r} is an array of arrays")
        if key in _TOKEN_ARRAYS:
            if kind not in _TOKEN_ARRAYS[key]:
                raise InconsistentFileError(f"key {key!r} is an array of type {kind}")
            self.tokens.counts[key] = count
        if kind == STRING:
            self.strings_left -= count
            if count * 8 > self.size - self.position or self.strings_left < 0:
                raise InconsistentFileError(f"key {key!r} claims {count} strings")
            if key == "tokenizer.ggml.tokens":
                for token_id in range(count):
                    self.tokens.add(token_id, self.string(MAX_ARRAY_STRING_BYTES))
                return
            for _ in range(count):
                self.skip(self.length(MAX_ARRAY_STRING_BYTES))
        elif key.endswith(".head_count_kv") and kind in (4, 5) and count <= MAX_LAYERS and len(self.heads) < 8:
            self.heads[key] = struct.unpack(f"<{count}{SCALARS[kind][1]}", self.take(4 * count))
        elif kind in SCALARS:
            self.skip(count * struct.calcsize(SCALARS[kind]))
        else:
            raise InconsistentFileError(f"key {key!r} is an array of unknown type {kind}")

    def tensors(self, count: int, alignment: object) -> dict[str, int]:
        """Checks the tensor table; returns the number of values stored in each type."""
        power_of_two = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
        if not (isinstance(alignment, int) and power_of_two and alignment <= MAX_ALIGNMENT):
            raise InconsistentFileError(
                f"invalid alignment {alignment}; it must be a power of two up to {MAX_ALIGNMENT}"
            )
        ends: list[tuple[str, int]] = []
        shares: dict[str, int] = {}
        for _ in range(count):
            name = self.string(MAX_KEY_BYTES)
            shown = name.decode()
            if name in self.names:
                raise InconsistentFileError(f"duplicate tensor {shown!r}")
            self.names.add(name)
            kind, num_values, num_bytes = self.tensor_size(shown)
            offset = self.u64()
            if offset % alignment:
                raise InconsistentFileError(f"tensor {shown!r} starts at {offset}, not a multiple of {alignment}")
            ends.append((shown, offset + num_bytes))
            shares[kind] = shares.get(kind, 0) + num_values
            self.num_weight_bytes += num_bytes
        data_start = -(-self.position // alignment) * alignment
        for shown, end in ends:
            if data_start + end > self.size:
                raise InconsistentFileError(
                    f"truncated: tensor {shown!r} ends {data_start + end - self.size} bytes after the end of the file"
                )
        return shares

    def tensor_size(self, name: str) -> tuple[str, int, int]:
        num_dims = self.u32()
        if not 1 <= num_dims <= 4:
            raise InconsistentFileError(f"tensor {name!r} has {num_dims} dimensions")
        dims = [self.u64() for _ in range(num_dims)]
        kind = self.u32()
        if kind in REMOVED_TYPES:
            raise ForeignFileError(
                f"has the type {REMOVED_TYPES[kind][0]} (tensor {name!r}), which llama.cpp has removed",
                REMOVED_TYPES[kind][1],
            )
        if kind not in GGML_TYPES and kind <= MAX_FOREIGN_TYPE:
            raise ForeignFileError(
                f"has the type {kind} (tensor {name!r}), which llama.cpp does not have: it is for another program",
                "use a file with llama.cpp's own types, such as Q4_K_M or Q8_0",
            )
        if kind not in GGML_TYPES:
            raise InconsistentFileError(f"tensor {name!r} has unknown type {kind}")
        label, block, block_bytes = GGML_TYPES[kind]
        num_values = 1
        for dim in dims:  # Python integers don't overflow
            num_values *= dim
        if kind in _NO_WEIGHTS and name.endswith(_MATRICES):
            self.uncomputed = f"the tensor {name!r} has the type {label}, which it does not multiply with"
        while len(dims) > 2 and dims[-1] == 1:
            dims.pop()
        if name == "token_embd.weight" and len(dims) == 2:
            self.vocab_rows = dims[1]
        # Mamba and delta rules, LFM2, RWKV.
        for part in (".ssm_", ".shortconv.", ".time_mix_"):
            if part in name:
                self.state_layers.add(name.partition(part)[0])
        if name.endswith((".attn_k.weight", ".attn_v.weight")) and len(dims) == 2:
            self.num_cache_values += dims[1]
            self.key_rows[name] = dims[1]
        if num_values == 0 or dims[0] % block:
            raise InconsistentFileError(f"tensor {name!r} of type {label} has the shape {dims}")
        return label, num_values, num_values // block * block_bytes


def _text(pairs: dict[str, object], key: str) -> str | None:
    value = pairs.get(key)
    return value.decode() if isinstance(value, bytes) else None


def _integer(pairs: dict[str, object], key: str) -> int | None:
    value = pairs.get(key)
    return value if isinstance(value, int) else None
