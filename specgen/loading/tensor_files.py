"""Reads tensors of a model folder by name. Nothing is mapped: pages of a mapped file count as memory of the process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from specgen.core.errors import ModelFileError
from specgen.core.model_files import corrupt
from specgen.loading.left_over import misplaced, missing_hint
from specgen.loading.safetensors_check import StoredTensor, stored_tensors
from specgen.models.tensor_names import EMBEDDING, HEAD
from specgen.models.weight_memory import SharedMemory, joined, mapped_tensor

MAX_NAMED = 3
"""Tensors named in an error; of more the number is given."""

T = TypeVar("T")
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorFiles:
    """The tensors of a model folder.

    Args:
        folder: Holds the files.
        names: Of the safetensors files. They were checked: see `specgen.loading.safetensors_check`.
        kept_type: Tensors that are stored in this type are used as they are read, on the CPU.
    """

    def __init__(self, folder: Path, names: Sequence[str], kept_type: torch.dtype | None = None) -> None:
        self._folder, self._kept_type, self._shared = folder, kept_type, SharedMemory()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        self._places: dict[str, tuple[Path, StoredTensor]] = {}
        for path in (folder / name for name in names):
            for name, tensor in stored_tensors(path).items():
                self.shapes[name] = tensor.shape
                self._types[name] = tensor.dtype
                self._places[name] = path, tensor
        if EMBEDDING.removeprefix("model.") in self.shapes:
            self._add_prefix()

    def _add_prefix(self) -> None:
        """Renames the tensors of a model that was saved without its head, as models of embeddings are."""

        def renamed(values: dict[str, T]) -> dict[str, T]:
            return {name if name == HEAD else f"model.{name}": value for name, value in values.items()}

        self.shapes, self._types, self._places = renamed(self.shapes), renamed(self._types), renamed(self._places)

    def read(self, *names: str, device: torch.device | str = "cpu") -> Tensor:
        """Returns tensors in the type they are stored in, joined along their first dimension.

        They are read to their place in the result: reading each to memory of its own would take twice the pages.

        Raises:
            ModelFileError: The file has become shorter since it was checked.
        """
        types = {self._types[name] for name in names}
        if len(types) > 1:
            return joined([self.read(name, device=device) for name in names])
        first = self.shapes[names[0]]
        shape = (sum(self.shapes[name][0] for name in names), *first[1:]) if len(names) > 1 else first
        dtype = _TYPES[types.pop()]
        make = self._shared.mapped_tensor if dtype == self._kept_type else mapped_tensor
        tensor, rest = make(shape, dtype)
        for name in names:
            path, stored = self._places[name]
            with path.open("rb") as file:
                file.seek(stored.begin)
                if file.readinto(rest[: stored.num_bytes]) != stored.num_bytes:
                    raise corrupt(path, "truncated while it was read")
            rest = rest[stored.num_bytes :]
        return tensor.to(device)

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> list[str]:
        """Compares names, shapes and types with those that a model needs.

        Args:
            expected: Shapes by name.
            ignored: Further tensors that may be there.

        Returns:
            Tensors that the model does without: see `specgen.loading.left_over`.

        Raises:
            ModelFileError: A tensor is missing, unexpected, or has another shape or an unsupported type.
        """
        missing = expected.keys() - self.shapes.keys()
        left_over = self.shapes.keys() - expected.keys() - set(ignored)
        unexpected = misplaced(left_over, expected)
        typed = [f"{name} ({kind})" for name, kind in self._types.items() if name in expected and kind not in _TYPES]
        other = [name for name, shape in expected.items() if name in self.shapes and self.shapes[name] != shape]
        headless = "the model was saved without its head, as classifiers are: use one that generates text"
        for names, what, hint in (
            (missing, "missing {}", headless if missing == {HEAD} else ""),
            (other, "{} with a wrong shape", "config and weights don't belong together"),
            (unexpected, "{} that the config does not name", "config and weights don't belong together"),
            (typed, "{} of an unsupported type", "use a checkpoint with float weights"),
        ):
            if names:
                count = "one tensor" if len(names) == 1 else f"{len(names)} tensors"
                listed = ", ".join(sorted(names)[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
                hint = hint or missing_hint(names, left_over)
                raise ModelFileError(f"{self._folder}: {what.format(count)}: {listed}", hint)
        return sorted(left_over)
