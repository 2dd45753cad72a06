"""Reads tensors of a model folder by name, a few at a time, so that the files are never mapped as a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from specgen.core.errors import ModelFileError

MAX_NAMED = 3
"""Tensors named in an error; of more the number is given."""


_TYPES = ("F64", "F32", "F16", "BF16")


class TensorFiles:
    """The tensors of a model folder.

    Args:
        folder: Holds the files.
        names: Of the safetensors files. They were checked: see `specgen.loading.safetensors_check`.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        for name in names:
            with safe_open(folder / name, framework="pt") as file:
                for tensor in file.keys():  # noqa: SIM118  the file is not a mapping
                    stored = file.get_slice(tensor)
                    self.shapes[tensor] = tuple(stored.get_shape())
                    self._types[tensor] = str(stored.get_dtype())
                    self._paths[tensor] = folder / name

    def read(self, names: Iterable[str], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Returns copies of tensors, in the type they are stored in. The pages read for them are released."""
        by_path: dict[Path, list[str]] = defaultdict(list)
        for name in names:
            by_path[self._paths[name]].append(name)
        found = {}
        for path, tensors in by_path.items():
            with safe_open(path, framework="pt") as file:
                for name in tensors:
                    mapped = file.get_tensor(name)
                    found[name] = mapped.clone() if torch.device(device).type == "cpu" else mapped.to(device)
        return found

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> None:
        """Compares names, shapes and types with those that a model needs.

        Args:
            expected: Shapes by name.
            ignored: Further tensors that may be there.

        Raises:
            ModelFileError: A tensor is missing, unexpected, or has another shape or an unsupported type.
        """
        missing = expected.keys() - self.shapes.keys()
        unexpected = self.shapes.keys() - expected.keys() - set(ignored)
        typed = [f"{name} ({kind})" for name, kind in self._types.items() if name in expected and kind not in _TYPES]
        other = [name for name, shape in expected.items() if name in self.shapes and self.shapes[name] != shape]
        for names, what, hint in (
            (missing, "missing {}", "download it again"),
            (other, "{} with a wrong shape", "config and weights don't belong together"),
            (unexpected, "{} that the config does not name", "config and weights don't belong together"),
            (typed, "{} of an unsupported type", "use a checkpoint with float weights"),
        ):
            if names:
                count = "one tensor" if len(names) == 1 else f"{len(names)} tensors"
                listed = ", ".join(sorted(names)[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
                raise ModelFileError(f"{self._folder}: {what.format(count)}: {listed}", hint)
