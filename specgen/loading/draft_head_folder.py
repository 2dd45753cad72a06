"""Checks a draft head's folder, and that its target is the one it was made for.

Embeddings and head belong to the target and are never in the folder, so a draft head works with its own target only. A
digest in its config identifies the target.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from specgen.core.errors import ModelFileError, PairError
from specgen.core.model_files import read_json
from specgen.loading.config_check import DRAFT_HEAD_KEY, check_sizes, read_config, refuse_kernels, weight_files
from specgen.loading.config_reader import UnsupportedConfig
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.draft_head_tensors import WEIGHTS, Kind, check_tensors, draft_head_shapes, invalid_draft_head
from specgen.loading.model_config import ModelConfig
from specgen.loading.safetensors_check import check_safetensors
from specgen.models.decoder_spec import DecoderSpec

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
SHIPPED = Path(__file__).parent.parent / "drafts"
"""Draft heads that come with the package, one folder per target."""
NUM_DIGEST_ROWS = 64
EMBEDDING = "model.embed_tokens.weight"
_DIGEST_KEYS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
)


@dataclass(frozen=True, slots=True)
class DraftHeadFolder:
    """A checked draft head folder, before its weights are read.

    Args:
        path: The folder.
        config: As for any model; counts the parameters in the folder, without the target's.
        kind: What it reads.
        target_layers: The target's layers it was initialized from, for display.
        target_name: The target's name when the draft was made, for display.
        target_digest: `target_digest` of its target.
        num_draft_ids: Number of tokens it can propose; None: all.
        spec: Describes its layers.
    """

    path: Path
    config: ModelConfig
    kind: Kind
    target_layers: tuple[int, ...]
    target_name: str
    target_digest: str
    num_draft_ids: int | None
    spec: DecoderSpec

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.spec.layers)

    @property
    def hidden_size(self) -> int:
        """Width of its layers and of the target's."""
        return self.spec.hidden_size

    @property
    def remark(self) -> str:
        """Describes it in a few words."""
        layers = "1 layer" if self.num_layers == 1 else f"{self.num_layers} layers"
        reads = ", reads the target's features" if self.kind == "features" else ""
        ids = "" if self.num_draft_ids is None else f", proposes {self.num_draft_ids} tokens"
        return f"{layers} on the target's embeddings{reads}{ids}"


def is_draft_head(folder: Path) -> bool:
    """Returns whether a folder's config describes a draft head; reads nothing else."""
    try:
        return DRAFT_HEAD_KEY in read_json(folder / "config.json")
    except ModelFileError:
        return False


def check_draft_head(folder: Path) -> DraftHeadFolder:
    """Checks a draft head's folder: the config, and names, shapes and types of all tensors.

    Raises:
        ModelFileError: It is damaged, unsafe, incomplete, or of a later format.
    """
    config = read_config(folder)
    refuse_kernels(config, folder)
    check_sizes(config, folder)
    draft_head = _draft_head_config(config, folder)
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise invalid_draft_head(folder, f"unsupported model type {model_type!r}")
    kind, num_draft_ids = draft_head["kind"], draft_head.get("num_draft_ids")
    spec = _spec(config, folder)
    expected = draft_head_shapes(spec, kind, num_draft_ids)
    if not (folder / WEIGHTS).exists():
        weight_files(folder, config)  # its error names what is there instead: a pickle, or nothing
    file = check_safetensors(folder / WEIGHTS)
    dtype, num_parameters = check_tensors(folder, expected)
    return DraftHeadFolder(
        path=folder,
        config=ModelConfig(
            model_type=str(model_type),
            vocab_rows=config["vocab_size"],
            max_positions=config.get("max_position_embeddings"),
            quant_method=None,
            dtype=dtype,
            num_parameters=num_parameters,
            num_weight_bytes=file.num_bytes,
            widths_fit_blocks=config["hidden_size"] % 64 == 0 and config["intermediate_size"] % 64 == 0,
        ),
        kind=kind,
        target_layers=tuple(draft_head["target_layers"]),
        target_name=draft_head["target_name"],
        target_digest=draft_head["target_digest"],
        num_draft_ids=num_draft_ids,
        spec=spec,
    )


def shipped_draft(target: Path) -> Path | None:
    """Returns the folder of the draft head in this package that was made for a target; None if there is none."""
    for path in sorted(SHIPPED.glob("*/config.json")):
        try:
            check_own_target(check_draft_head(path.parent), "", target, "")
        except (ModelFileError, PairError):
            continue
        return path.parent
    return None


def check_own_target(draft_head: DraftHeadFolder, name: str, target: Path, target_name: str) -> None:
    """Refuses a draft head that was made for another target.

    Args:
        draft_head: The draft head.
        name: Its name, for messages.
        target: Folder of the target.
        target_name: The target's name, for messages.

    Raises:
        PairError: It was made for another target.
        ModelFileError: The target's files can't be read.
    """
    if digest_of(target) != draft_head.target_digest:
        raise PairError(
            f"the draft {name} was made for another target ({draft_head.target_name}) than {target_name}",
            "give the target it was made for with -t, or another draft with -d",
        )


def target_digest(embedding: Tensor, config: Mapping[str, Any]) -> str:
    """Returns the digest that identifies a target: SHA-256 of sizes and the first rows of its embeddings, in hex.

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
    """Returns the `target_digest` of a model's folder; None if its embeddings don't have the usual name."""
    rows = _embedding_rows(folder)
    return None if rows is None else target_digest(rows, read_config(folder))


def _draft_head_config(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the draft head's own part of a config, checked."""
    part = config.get(DRAFT_HEAD_KEY)
    if not isinstance(part, dict):
        raise invalid_draft_head(folder, f"{DRAFT_HEAD_KEY} is not an object")
    if part.get("format") != FORMAT:
        raise ModelFileError(
            f"{folder} is a draft head of format {part.get('format')!r}; this specgen reads format {FORMAT}",
            "upgrade specgen, or make the draft again with specgen distill",
        )
    layers, num_ids = part.get("target_layers"), part.get("num_draft_ids")
    checks = {
        "kind": part.get("kind") in get_args(Kind),
        "target_layers": isinstance(layers, list) and all(type(item) is int for item in layers),
        "target_name": isinstance(part.get("target_name"), str),
        "target_digest": isinstance(part.get("target_digest"), str),
        "num_draft_ids": num_ids is None or (type(num_ids) is int and num_ids >= 1),
    }
    for name, is_valid in checks.items():
        if not is_valid:
            raise invalid_draft_head(folder, f"{DRAFT_HEAD_KEY}.{name} is {part.get(name)!r}")
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if name not in config:
            raise invalid_draft_head(folder, f"{name} is missing")
    for name in ("num_key_value_heads", "head_dim"):
        value = config.get(name)
        if value is not None and not (type(value) is int and 1 <= value <= config["hidden_size"]):
            raise invalid_draft_head(folder, f"{name} is {value!r}")
    return part


def _spec(config: Mapping[str, Any], folder: Path) -> DecoderSpec:
    try:
        return decoder_spec({key: value for key, value in config.items() if key != DRAFT_HEAD_KEY})
    except UnsupportedConfig as error:
        raise invalid_draft_head(folder, f"unsupported layers: {error}") from error


def _embedding_rows(folder: Path) -> Tensor | None:
    """Returns the first rows of a model's embeddings, as stored; None if they don't have the usual name."""
    from safetensors import safe_open

    for name in weight_files(folder, read_config(folder)):
        with safe_open(folder / name, "pt") as file:
            if EMBEDDING in file.keys():  # noqa: SIM118  it is not a mapping
                rows: Tensor = file.get_slice(EMBEDDING)[:NUM_DIGEST_ROWS]
                return rows
    return None
