"""Checks a model's weights after transformers loaded them: every tensor is there, and finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specgen.core.errors import ModelFileError, NumericalError


def check_complete(loading: dict[str, Any], folder: Path) -> None:
    """Refuses a model with missing, unexpected or misshapen tensors (F17, F18).

    transformers itself fills a missing tensor with random numbers, and mentions it in a log only.

    Args:
        loading: What `from_pretrained(..., output_loading_info=True)` reports. Tied tensors don't count as missing.
        folder: For messages.

    Raises:
        ModelFileError: A tensor is missing, unexpected, misshapen or unreadable.
    """
    for key, problem, hint in (
        ("missing_keys", "missing tensors", "download it again"),
        ("mismatched_keys", "tensors with a wrong shape", "config and weights don't belong together"),
        ("unexpected_keys", "unexpected tensors", "config and weights don't belong together"),
        ("error_msgs", "unreadable tensors", "download it again"),
    ):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in loading.get(key) or ())
        if names:
            raise ModelFileError(f"{folder}: {problem}: {listed(names)}", hint)


def check_finite(model: Any, folder: Path) -> None:
    """Refuses weights with NaN or infinity (F19). Checks embeddings and norms only: every token passes all of them.

    Raises:
        NumericalError: One of them is not finite.
    """
    import torch

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


def listed(names: list[str]) -> str:
    """Returns the first three names and the number of the others: `a, b, c and 4 more`."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
