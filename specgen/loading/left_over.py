"""Decides which tensors of a checkpoint a model may leave out without a change of its text.

Checkpoints contain heads of rewards and of further tokens, and encoders of images, next to the model. transformers
leaves out any tensor that it has no place for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from specgen.core.model_files import listed

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")

_LAYER = re.compile(r"(.*?)\.(\d+)\.(.+)")
"""What precedes a layer's number, the number, and a tensor's name within the layer."""


def misplaced(left_over: Iterable[str], expected: Collection[str]) -> list[str]:
    """Returns those of the left-over tensors without which the text would be another.

    These are parts of a module or of a layer that the model has, as a bias that its config does not name, and further
    layers of the same kind. A layer after the last one that also has tensors of its own kind predicts further tokens
    (`eh_proj` and `enorm` of DeepSeek).

    Args:
        left_over: Tensors of the files that the model has no place for.
        expected: All tensors of the model.
    """
    modules = {name.rpartition(".")[0] for name in expected}
    kinds: dict[str, set[str]] = {}
    numbers: dict[str, set[str]] = {}
    for name in expected:
        if match := _LAYER.fullmatch(name):
            stack, number, rest = match.groups()
            kinds.setdefault(stack, set()).add(rest)
            numbers.setdefault(stack, set()).add(number)
    found: list[str] = []
    further: dict[tuple[str, str], dict[str, str]] = {}
    for name in left_over:
        match = _LAYER.fullmatch(name)
        # A checkpoint of the model without its head has names without the first part.
        stack = next((known for known in kinds if match and f".{known}".endswith(f".{match[1]}")), None)
        if match is not None and stack is not None and match[2] not in numbers[stack]:
            further.setdefault((stack, match[2]), {})[name] = match[3]
        elif stack is not None or name.rpartition(".")[0] in modules:
            found.append(name)
    for (stack, _), rests in further.items():
        if kinds[stack].issuperset(rests.values()):
            found += rests
    return sorted(found)


def missing_hint(missing: Collection[str], left_over: Iterable[str]) -> str:
    """Returns what to do about missing tensors, which may be there under the names that a wrapper gave them."""
    first = min(missing)
    longer = next((name for name in sorted(left_over) if name.endswith(f".{first}")), None)
    if longer is None:
        return "download it again"
    prefix = longer.removesuffix(first)
    return f"the model was saved inside a wrapper: remove {prefix!r} from the names of its tensors"


def default_sizes(given: Mapping[str, Any], config: Any) -> str:
    """Returns the sizes that a config.json leaves to transformers' defaults, as a hint about shapes."""
    names = [name for name in _SIZES if name not in given and type(getattr(config, name, None)) is int]
    found = [f"{name} ({getattr(config, name)})" for name in names if "text_config" not in given]
    return f"config.json lacks {', '.join(found)}: these are transformers' defaults" if found else ""


def left_out_notice(names: Collection[str], folder: Path) -> tuple[str, ...]:
    """Returns a notice of the tensors that are left out, if there are any."""
    shown = listed(sorted(names))
    return (f"left out of {folder}: tensors that its config has no place for: {shown}",) if names else ()
