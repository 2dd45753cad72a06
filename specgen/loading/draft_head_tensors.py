"""The tensors in a draft head's weight file: the names and shapes its config requires, their check, their reading."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from specgen.core.errors import ModelFileError
from specgen.core.library_errors import first_line, library_failures
from specgen.loading.weights_check import listed
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.tensor_names import EMBEDDING, HEAD, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["layers", "features"]
"""`layers` reads tokens; `features` also reads the inputs of the target's head."""
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
WEIGHTS = "model.safetensors"
PREFIX = "model."
"""What checkpoints' names begin with, and a draft head's do not."""


def draft_head_shapes(spec: DecoderSpec, kind: Kind, num_draft_ids: int | None) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that a draft head requires, by name: its layers, its norm and its own parts."""
    shapes = {
        name.removeprefix(PREFIX): shape for name, shape in tensor_shapes(spec).items() if name not in (EMBEDDING, HEAD)
    }
    if kind == "features":
        shapes["fc.weight"] = (spec.hidden_size, 2 * spec.hidden_size)
    if num_draft_ids is not None:
        shapes["draft_ids"] = (num_draft_ids,)
    return shapes


def check_tensors(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> tuple[str, int]:
    """Compares the header of a draft head's weight file with what its config requires.

    Args:
        folder: The draft head.
        expected: See `tensor_shapes`.

    Returns:
        The type of the stored norm, `bfloat16`, and the number of parameters.

    Raises:
        ModelFileError: A tensor is missing, unexpected, or of a wrong shape or type.
    """
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is not a mapping
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        types = {name: str(part.get_dtype()) for name, part in slices.items()}
    for problem, names in (
        ("missing tensors", expected.keys() - shapes.keys()),
        ("unexpected tensors", shapes.keys() - expected.keys()),
        ("tensors with a wrong shape", {name for name in expected if shapes.get(name) != expected[name]}),
        ("tensors of a wrong type", {name for name, dtype in types.items() if not _is_valid_type(name, dtype)}),
    ):
        if names:
            raise invalid_draft_head(folder, f"{problem}: {listed(sorted(names))}")
    return FLOATS[types["norm.weight"]], sum(math.prod(shape) for name, shape in shapes.items() if name != "draft_ids")


def load_tensors(folder: Path, num_target_ids: int) -> dict[str, Tensor]:
    """Reads the weights, as stored.

    Args:
        folder: The draft head; its tensors must have been checked.
        num_target_ids: Rows of the target's embeddings.

    Raises:
        ModelFileError: They can't be read, contain NaN or infinity, or `draft_ids` are not ascending target ids.
    """
    import torch
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except library_failures() as error:
        raise ModelFileError(f"{path} can't be read: {first_line(error)}", "make the draft again") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
            raise invalid_draft_head(folder, f"the tensor {name} contains NaN or infinity")
    ids = tensors.get("draft_ids")
    if ids is not None:
        is_ascending = bool((ids[1:] > ids[:-1]).all())
        if not is_ascending or int(ids[0]) < 0 or int(ids[-1]) >= num_target_ids:
            raise invalid_draft_head(folder, "draft_ids are not ascending ids of the target's vocabulary")
    return tensors


def invalid_draft_head(folder: Path, reason: str) -> ModelFileError:
    """Returns the error for a draft head's folder that is damaged or inconsistent."""
    return ModelFileError(f"invalid draft head {folder}: {reason}", "make it again with specgen distill")


def _is_valid_type(name: str, dtype: str) -> bool:
    return dtype == "I64" if name == "draft_ids" else dtype in FLOATS
