"""Saves a trained draft as a folder for `--draft FOLDER`: config, safetensors and the model card README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specgen.core.errors import OutputError
from specgen.core.results import ModelInfo
from specgen.distill.draft import TrainableDraft
from specgen.distill.settings import DistillSettings
from specgen.distill.target_texts import save_tensors
from specgen.loading.draft_head_folder import FORMAT, PREFIX, WEIGHTS
from specgen.models.build_decoder import layer_tensors

if TYPE_CHECKING:
    from specgen.distill.measurement import DraftAcceptance, TimedPair

CONFIG = "config.json"
_KEPT = (
    *("architectures", "model_type", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps"),
    *("hidden_act", "attention_bias", "mlp_bias", "max_position_embeddings", "vocab_size", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


def draft_config(
    config: Mapping[str, Any], draft: TrainableDraft, name: str, digest: str, num_draft_ids: int
) -> dict[str, Any]:
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


def save_draft(folder: Path, draft: TrainableDraft, draft_ids: Tensor, config: Mapping[str, Any]) -> None:
    """Writes a draft with weights in bfloat16, which every device supports.

    Raises:
        OutputError: The disk is full, or the folder can't be written to.
    """
    tensors: dict[str, Tensor] = {"norm.weight": draft.norm.weight}
    for index, layer in enumerate(draft.layers):
        named = layer_tensors(draft.spec, layer, index)
        tensors |= {name.removeprefix(PREFIX): tensor for name, tensor in named.items()}
    if draft.fc is not None:
        tensors["fc.weight"] = draft.fc.weight
    tensors = {name: value.detach().cpu().to(torch.bfloat16).contiguous() for name, value in tensors.items()}
    if config["specgen_draft"]["num_draft_ids"] is not None:
        tensors["draft_ids"] = draft_ids.cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"can't write {folder}: {error.strerror or error}") from error


def publish_draft(made: Path, folder: Path, card: str) -> int:
    """Moves a draft to its final folder and adds its card.

    Args:
        made: Folder that `save_draft` wrote, on the same disk.
        folder: The final folder.
        card: Its README.md.

    Returns:
        Bytes of the weights.

    Raises:
        OutputError: The disk is full, or the folder can't be written to.
    """
    try:
        (folder / "README.md").write_text(card, encoding="utf-8")
        # The config last: a folder with a config counts as a draft.
        for name in (WEIGHTS, CONFIG):
            (made / name).replace(folder / name)
        return (folder / WEIGHTS).stat().st_size
    except OSError as error:
        raise OutputError(f"can't write {folder}: {error.strerror or error}") from error


Curve = list[tuple[int, float, float]]
"""Step, loss, and α at each measurement."""


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """How a draft was trained.

    Args:
        settings: The user's settings.
        about: The `specgen_draft` part of the draft's config.
        num_texts: Training texts.
        num_new_tokens: Tokens in them that the target generated.
        num_held_out: Texts for measurements.
        explained: Share of the variance that the initial fit explained (see `fit_input`).
        curve: Its measurements.
    """

    settings: DistillSettings
    about: dict[str, Any]
    num_texts: int
    num_new_tokens: int
    num_held_out: int
    explained: float
    curve: Curve


def format_card(record: TrainingRecord, acceptance: DraftAcceptance, timed: TimedPair) -> str:
    """Returns the README.md of a draft's folder, in Markdown."""
    about, train = record.about, record.settings.train
    layers = ", ".join(str(index) for index in about["target_layers"])
    reads = "tokens and the target's last hidden states" if about["kind"] == "features" else "tokens"
    ids = "all tokens" if about["num_draft_ids"] is None else f"the {about['num_draft_ids']} the target writes most"
    costs = timed.costs
    plain_seconds = costs.verify_seconds[1]
    length, speedup = acceptance.best_length(costs)
    rows = [
        (
            str(n),
            f"{acceptance.alpha(n):.3f}",
            f"{acceptance.tokens_per_round(n):.2f}",
            *(f"{by_step[n - 1]:.3f}" for by_step in acceptance.by_width.values()),
            f"{costs.verify_seconds[n + 1] * 1000:.1f}",
            f"{acceptance.speedup(n, costs):.2f}",
        )
        for n in range(1, len(acceptance.num_rounds) + 1)
    ]
    widths = [f"top {width}" for width in acceptance.by_width]
    head = ("draft length", "α", "tokens per round", *widths, "pass in ms", "predicted speedup")
    curve = [(str(step), f"{loss:.3f}", f"{alpha:.3f}") for step, loss, alpha in record.curve]
    parts = [
        f"# A draft head for {about['target_name']}",
        f"Made by `specgen distill`. Kind `{about['kind']}`: reads {reads}. Initialized with layers {layers} of the "
        f"target; embeddings and head are the target's own and not in this folder. It proposes {ids}.",
        "It changes the speed of generation and never the text: the target verifies every proposal.",
        "## Data",
        f"{record.num_texts} texts with {record.num_new_tokens} tokens generated by the target, "
        f"{record.settings.texts.greedy_share:.0%} of the answers greedy, the others sampled at temperature "
        f"{record.settings.texts.temperature}.",
        "## Loss",
        f"Cross entropy to the target's distribution over those tokens ({train.hard_share:.0%} of it to its best token "
        f"only) plus {train.feature_weight} times the smooth L1 distance to the target's features, over {train.unroll} "
        f"drafted steps. The initial linear fit explained {record.explained:.0%} of the first layer's input.",
        _table(("step", "loss", "α, drafts of 3"), curve),
        "## Measured",
        f"Greedy, on {record.num_held_out} answers to prompts outside the training data, by replaying the decoding "
        f"loop on the target's text. On the training machine a drafted token costs {costs.draft_seconds * 1000:.2f} ms "
        f"and a token of the target {plain_seconds * 1000:.1f} ms (c = {costs.draft_seconds / plain_seconds:.3f}), "
        f"with the target in {_format_name(timed.target)} and the draft in {_format_name(timed.draft)}. Highest "
        f"predicted speedup: {speedup:.2f}x with drafts of {length}. Top n: the share of positions at which the "
        "target's token is among the n likeliest ones of this step.",
        _table(head, rows),
        "## Settings",
        f"```json\n{json.dumps(asdict(record.settings), indent=2)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _format_name(info: ModelInfo) -> str:
    return info.dtype if info.quant == "none" else info.quant


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
