"""Saves a trained draft as a folder for `--draft FOLDER`: config, safetensors, card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specgen.core.errors import OutputError
from specgen.distill.draft import Draft
from specgen.distill.text_files import save_tensors
from specgen.loading.draft_head_tensors import PREFIX, WEIGHTS
from specgen.models.build_decoder import layer_tensors

FORMAT = 1
CONFIG = "config.json"
_KEPT = (
    *("architectures", "model_type", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps"),
    *("hidden_act", "attention_bias", "mlp_bias", "max_position_embeddings", "vocab_size", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


def draft_config(config: Mapping[str, Any], draft: Draft, name: str, digest: str, num_draft_ids: int) -> dict[str, Any]:
    """Returns the config of a draft head.

    Args:
        config: The target's, as plain values.
        draft: The trained draft.
        name: The target's name, for display.
        digest: `target_digest` of the target.
        num_draft_ids: Tokens that the draft can propose; if it can propose all, the folder has no list of them.
    """
    num_ids = None if num_draft_ids >= config["vocab_size"] else num_draft_ids
    about = {
        "format": FORMAT,
        "kind": draft.kind,
        "target_layers": list(draft.target_layers),
        "target_name": name,
        "target_digest": digest,
        "num_draft_ids": num_ids,
    }
    kept = {key: config[key] for key in _KEPT if config.get(key) is not None}
    # A missing window is not the same as none: the families have defaults.
    kept |= {key: config[key] for key in ("sliding_window", "use_sliding_window") if key in config}
    return {**kept, "num_hidden_layers": len(draft.target_layers), "specgen_draft": about}


def save_draft(folder: Path, draft: Draft, draft_ids: Tensor, config: Mapping[str, Any]) -> None:
    """Writes a draft with weights in bfloat16, which every device supports.

    Raises:
        OutputError: The disk is full, or the folder cannot be written to.
    """
    tensors = {
        name: value.detach().cpu().to(torch.bfloat16).contiguous() for name, value in _draft_tensors(draft).items()
    }
    if config["specgen_draft"]["num_draft_ids"] is not None:
        tensors["draft_ids"] = draft_ids.cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def publish_draft(made: Path, folder: Path, card: str) -> int:
    """Moves a draft to its final folder and adds its card.

    Args:
        made: Folder that `save_draft` wrote, on the same disk.
        folder: The final folder.
        card: Its README.md.

    Returns:
        Bytes of the weights.

    Raises:
        OutputError: The disk is full, or the folder cannot be written to.
    """
    try:
        (folder / "README.md").write_text(card, encoding="utf-8")
        # The config last: a folder with a config counts as a draft.
        for name in (WEIGHTS, CONFIG):
            (made / name).replace(folder / name)
        return (folder / WEIGHTS).stat().st_size
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def _draft_tensors(draft: Draft) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {"norm.weight": draft.norm.weight}
    for index, layer in enumerate(draft.layers):
        named = layer_tensors(draft.spec, layer, index)
        tensors |= {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}
    return tensors if draft.fc is None else {**tensors, "fc.weight": draft.fc.weight}
