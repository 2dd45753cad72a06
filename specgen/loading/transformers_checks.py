"""Refuses models that transformers loaded incompletely, or whose weights are not finite.

transformers fills a missing tensor with random numbers and mentions it in a log only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from specgen.core.errors import ModelFileError, NumericalError
from specgen.core.model_files import listed
from specgen.loading.left_over import misplaced, missing_hint

_UNRELATED = "config and weights don't belong together"


def check_complete(
    loading: Mapping[str, Any], folder: Path, expected: Collection[str], defaults: str = ""
) -> list[str]:
    """Refuses a model with missing, misplaced or misshapen tensors (F17, F18).

    Args:
        loading: What `from_pretrained(..., output_loading_info=True)` reports. Tied tensors don't count as missing.
        expected: The model's tensors.
        defaults: A hint about sizes that config.json does not name.

    Returns:
        Tensors that the model does without: see `specgen.loading.left_over`.

    Raises:
        ModelFileError: A tensor is missing, misplaced, misshapen or unreadable.
    """
    left_over = list(loading.get("unexpected_keys") or ())
    for found, problem, hint in (
        (loading.get("missing_keys"), "missing tensors", ""),
        (loading.get("mismatched_keys"), "tensors with a wrong shape", defaults or _UNRELATED),
        (misplaced(left_over, expected), "unexpected tensors", _UNRELATED),
        (loading.get("error_msgs"), "unreadable tensors", "download it again"),
    ):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in found or ())
        if names:
            raise ModelFileError(f"{folder}: {problem}: {listed(names)}", hint or missing_hint(names, left_over))
    return left_over


def check_finite(model: Any, folder: Path) -> None:
    """Refuses weights with NaN or infinity (F19). Checks embeddings and norms only: every token passes all of them.

    Raises:
        NumericalError: One of them is not finite.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    embeddings = {id(layer.weight) for layer in (inputs, outputs) if layer is not None}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and (parameter.ndim == 1 or id(parameter) in embeddings):
            # Minimum and maximum propagate NaN and need no copy; isfinite() would create a mask as large as the tensor.
            low, high = torch.aminmax(parameter.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise NumericalError(
                    f"{folder}: the tensor {name} contains NaN or infinity", "the file is damaged: download it again"
                )
