"""Mends the split of tokenizer files of Mistral's that older versions of transformers converted wrongly.

Those of Mistral Small 3, Nemo, Pixtral and Devstral got the rule of Llama 3. Source: transformers' `fix_mistral_regex`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from specgen.core.model_files import read_optional_json

WRONG = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
RIGHT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MODEL_TYPES = ("mistral", "mistral3", "voxtral", "ministral", "pixtral")


def mend_split(backend: Tokenizer, folder: Path) -> str | None:
    """Replaces the known wrong rule.

    Only in a model of Mistral's own vocabulary (it has `[INST]`): others chose their rule.

    Args:
        backend: The tokenizer of the file; changed in place.
        folder: The model's folder; its config.json names the model type and the version that wrote it.

    Returns:
        A notice if the rule was replaced, or if it is another one than Mistral's and may be wrong.
    """
    config = read_optional_json(folder / "config.json")
    is_new = not str(config.get("transformers_version", "4")).startswith(("0.", "1.", "2.", "3.", "4"))
    if is_new or config.get("model_type") not in _MODEL_TYPES or backend.pre_tokenizer is None:
        return None
    state = json.loads(backend.pre_tokenizer.__getstate__())
    steps: list[dict[str, Any]] = state.get("pretokenizers", [state])
    split = next((step for step in steps if step.get("type") == "Split" and "Regex" in step["pattern"]), None)
    if split is None or split["pattern"]["Regex"] == RIGHT:
        return None
    if split["pattern"]["Regex"] != WRONG or backend.token_to_id("[INST]") is None:
        return "the tokenizer does not split text as Mistral's do: if it is one of theirs, its ids are wrong"
    split["pattern"] = {"Regex": RIGHT}
    mended = json.loads(backend.to_str())
    mended["pre_tokenizer"] = state
    backend.pre_tokenizer = Tokenizer.from_str(json.dumps(mended)).pre_tokenizer
    return "the tokenizer file has a wrong split, of an older version of transformers: Mistral's rule is used"
