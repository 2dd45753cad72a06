"""A shallow draft's folder in, facts and tensors out, or an error: a few layers that borrow a target's embeddings.

What belongs to the target (embeddings, head) is never in the folder, so a draft is worth nothing without its own
target; a digest in its config says which that is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from specgen.core.errors import ModelFileError, PairError
from specgen.core.library_errors import first_line, library_failures
from specgen.core.model_files import read_json
from specgen.loading.config_check import (
    SHALLOW_KEY,
    ConfigFacts,
    check_sizes,
    read_config,
    refuse_kernels,
    weight_files,
)
from specgen.loading.draft_head_tensors import WEIGHTS, Kind, bad_draft, check_tensors, tensor_shapes
from specgen.loading.safetensors_check import check_safetensors

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
SHIPPED = Path(__file__).parent.parent / "drafts"
"""Drafts that come with the package, a folder per target."""
NUM_DIGEST_ROWS = 64
EMBEDDING = "model.embed_tokens.weight"
_DIGEST_KEYS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
)


@dataclass(frozen=True, slots=True)
class DraftHeadFacts:
    """What is known of a shallow draft before its weights are read.

    Args:
        folder: Where it lies.
        config: Facts as of any model; its parameters are those of its own, nothing borrowed.
        kind: What it reads.
        num_layers: Its layers.
        target_layers: Which of the target's they were, for people.
        target_name: The target's name when the draft was made, for people.
        target_digest: `target_digest` of its target.
        num_draft_ids: Tokens it can propose; None: all.
        hidden_size: Width of its layers and of the target's.
    """

    folder: Path
    config: ConfigFacts
    kind: Kind
    num_layers: int
    target_layers: tuple[int, ...]
    target_name: str
    target_digest: str
    num_draft_ids: int | None
    hidden_size: int

    @property
    def remark(self) -> str:
        """What it is, in words."""
        layers = "1 layer" if self.num_layers == 1 else f"{self.num_layers} layers"
        reads = ", reads the target's features" if self.kind == "features" else ""
        ids = "" if self.num_draft_ids is None else f", proposes {self.num_draft_ids} tokens"
        return f"{layers} on the target's embeddings{reads}{ids}"


def target_digest(embedding: Tensor, config: Mapping[str, Any]) -> str:
    """Which model a draft belongs to: SHA-256 over sizes of its config and the first rows of its embeddings, in hex.

    Args:
        embedding: `[rows, hidden]` as stored, or as loaded in float32 or bfloat16: it is rounded to bfloat16 first.
        config: Content of config.json, or a transformers config's `to_dict()`.
    """
    import torch

    sizes = {key: config.get(key) for key in _DIGEST_KEYS}
    rows = embedding[:NUM_DIGEST_ROWS].detach().cpu().to(torch.bfloat16).contiguous()
    digest = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode())
    digest.update(rows.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digest_of(folder: Path) -> str | None:
    """`target_digest` of a model's folder, without loading it; None if its embeddings have no usual name."""
    rows = _embedding_rows(folder)
    return None if rows is None else target_digest(rows, read_config(folder))


def is_draft_head(folder: Path) -> bool:
    """Whether a folder says it is a shallow draft; nothing but its config is read."""
    try:
        return SHALLOW_KEY in read_json(folder / "config.json")
    except ModelFileError:
        return False


def check_draft_head(folder: Path) -> DraftHeadFacts:
    """Check a shallow draft's folder: config, names, shapes and types of all tensors.

    Raises:
        ModelFileError: It is damaged, unsafe, incomplete, or of a later format.
    """
    config = read_config(folder)
    refuse_kernels(config, folder)
    check_sizes(config, folder)
    about = _about(config, folder)
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise bad_draft(folder, f"a draft of model type {model_type!r} can't be run")
    num_draft_ids = about["num_draft_ids"]
    wanted = tensor_shapes(config, about["kind"], num_draft_ids)
    if not (folder / WEIGHTS).exists():
        weight_files(folder, config)  # says what is there instead: a pickle, or nothing
    file = check_safetensors(folder / WEIGHTS)
    dtype, num_parameters = check_tensors(folder, wanted)
    return DraftHeadFacts(
        folder=folder,
        config=ConfigFacts(
            model_type=str(model_type),
            vocab_rows=config["vocab_size"],
            max_positions=config.get("max_position_embeddings"),
            quant_method=None,
            dtype=dtype,
            num_parameters=num_parameters,
            num_weight_bytes=file.num_bytes,
            widths_fit_blocks=config["hidden_size"] % 64 == 0 and config["intermediate_size"] % 64 == 0,
        ),
        kind=about["kind"],
        num_layers=config["num_hidden_layers"],
        target_layers=tuple(about["target_layers"]),
        target_name=about["target_name"],
        target_digest=about["target_digest"],
        num_draft_ids=num_draft_ids,
        hidden_size=config["hidden_size"],
    )


def shipped_draft(target: Path) -> Path | None:
    """The folder of the draft in this package that was made for a target; None if there is none."""
    for path in sorted(SHIPPED.glob("*/config.json")):
        try:
            check_own_target(check_draft_head(path.parent), "", target, "")
        except (ModelFileError, PairError):
            continue
        return path.parent
    return None


def check_own_target(facts: DraftHeadFacts, name: str, target: Path, target_name: str) -> None:
    """Refuse a draft that was made for another target.

    Args:
        facts: The draft.
        name: What to call it.
        target: Folder of the target.
        target_name: What the user calls the target.

    Raises:
        PairError: It was.
        ModelFileError: The target's files can't be read.
    """
    if digest_of(target) != facts.target_digest:
        raise PairError(
            f"the draft {name} was made for another target ({facts.target_name}) than {target_name}",
            "give the target it was made for with -t, or another draft with -d",
        )


def load_tensors(facts: DraftHeadFacts) -> dict[str, Tensor]:
    """Read the weights, as stored.

    Raises:
        ModelFileError: They can't be read, hold NaN or infinity, or `draft_ids` are no ascending ids of the target.
    """
    import torch
    from safetensors.torch import load_file

    path = facts.folder / WEIGHTS
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except library_failures() as error:
        raise ModelFileError(f"{path} can't be read: {first_line(error)}", "make the draft again") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
            raise bad_draft(facts.folder, f"the tensor {name} holds NaN or infinity")
    ids = tensors.get("draft_ids")
    if ids is not None:
        ascends = bool((ids[1:] > ids[:-1]).all())
        if not ascends or int(ids[0]) < 0 or int(ids[-1]) >= (facts.config.vocab_rows or 0):
            raise bad_draft(facts.folder, "draft_ids are no ascending ids of the target's vocabulary")
    return tensors


def _about(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The part of a config that is the draft's own, checked."""
    about = config.get(SHALLOW_KEY)
    if not isinstance(about, dict):
        raise bad_draft(folder, f"{SHALLOW_KEY} is no object")
    if about.get("format") != FORMAT:
        raise ModelFileError(
            f"{folder} is a shallow draft of format {about.get('format')!r}, this specgen reads {FORMAT}",
            "upgrade specgen, or make the draft again with specgen distill",
        )
    layers, num_ids = about.get("target_layers"), about.get("num_draft_ids")
    checks = {
        "kind": about.get("kind") in get_args(Kind),
        "target_layers": isinstance(layers, list) and all(type(item) is int for item in layers),
        "target_name": isinstance(about.get("target_name"), str),
        "target_digest": isinstance(about.get("target_digest"), str),
        "num_draft_ids": num_ids is None or (type(num_ids) is int and num_ids >= 1),
    }
    for name, holds in checks.items():
        if not holds:
            raise bad_draft(folder, f"{SHALLOW_KEY}.{name} is {about.get(name)!r}")
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if name not in config:
            raise bad_draft(folder, f"{name} is missing")
    for name in ("num_key_value_heads", "head_dim"):
        value = config.get(name)
        if value is not None and not (type(value) is int and 1 <= value <= config["hidden_size"]):
            raise bad_draft(folder, f"{name} is {value!r}")
    return {**about, "num_draft_ids": num_ids}


def _embedding_rows(folder: Path) -> Tensor | None:
    """The first rows of a model's embeddings, as stored; None if it has none under the usual name."""
    from safetensors import safe_open

    for name in weight_files(folder, read_config(folder)):
        with safe_open(folder / name, "pt") as file:
            if EMBEDDING in file.keys():  # noqa: SIM118  it is no mapping
                rows: Tensor = file.get_slice(EMBEDDING)[:NUM_DIGEST_ROWS]
                return rows
    return None
