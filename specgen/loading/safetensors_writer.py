"""Writes a safetensors file in parts, in any order: its tensors need not be in memory together."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class SafetensorsWriter:
    """A file that is being written, by one thread or several.

    Args:
        path: The new file.
        shapes: Of the tensors, by name.
        dtype: Of all tensors.

    Raises:
        OSError: From every method, if the disk is full.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self._begins: dict[str, int] = {}
        self._dtype = dtype
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, shape in shapes.items():
            end = position + math.prod(shape) * dtype.itemsize
            entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
            self._begins[name], position = position, end
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)  # values are aligned
        self._data_start = 8 + len(header)
        self._file = path.open("wb", buffering=0)
        self._write_at(0, memoryview(len(header).to_bytes(8, "little") + header))

    def write(self, name: str, first: int, values: Tensor) -> None:
        """Writes values of a tensor.

        Args:
            first: Number of the first value in the tensor.
            values: Contiguous, in the file's type.
        """
        assert values.dtype == self._dtype, "the caller converts it"
        position = self._data_start + self._begins[name] + first * self._dtype.itemsize
        self._write_at(position, values.view(-1).view(torch.uint8).numpy().data)

    def _write_at(self, position: int, data: memoryview) -> None:
        while data:
            count = os.pwrite(self._file.fileno(), data, position)
            data, position = data[count:], position + count

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
