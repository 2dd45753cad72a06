"""Checks a draft head's folder, and that its target is the one it was made for.

Embeddings and head belong to the target and are never in the folder, so a draft head works with its own target only. A
digest in its config identifies the target.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen.core.errors import ModelFileError, PairError, SettingsError
from specgen.core.model_files import listed, read_json
from specgen.core.settings import ModelSettings
from specgen.loading.config_check import DRAFT_HEAD_KEY, read_config
from specgen.loading.config_reader import UnsupportedConfig
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.names import find_place, shipped_folders
from specgen.loading.resolved_model import DraftHeadConfig, DraftHeadKind, ModelConfig, ModelFiles, ResolvedModel
from specgen.loading.rotary_config import scaled_window
from specgen.loading.safetensors_check import StoredTensor, check_safetensors
from specgen.loading.weight_files import weight_files
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.tensor_names import EMBEDDING, HEAD, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
FOLDER_KINDS: tuple[DraftHeadKind, ...] = ("layers", "features")
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
WEIGHTS = "model.safetensors"
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
PREFIX = "model."
"""What the names of a checkpoint's tensors begin with, and a draft head's do not."""
NUM_DIGEST_ROWS = 64
_DIGEST_KEYS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
)


def is_draft_head(folder: Path) -> bool:
    """Returns whether a folder's config describes a draft head; reads nothing else."""
    try:
        return DRAFT_HEAD_KEY in read_json(folder / "config.json")
    except ModelFileError:
        return False


def check_draft_head(config: dict[str, Any], folder: Path) -> ModelConfig:
    """Checks a draft head: its config, which was read, and names, shapes and types of all tensors.

    Raises:
        ModelFileError: It is damaged, unsafe, incomplete, or of a later format.
    """
    draft_head = _draft_head_config(config, folder)
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise invalid_draft_head(folder, f"unsupported model type {model_type!r}")
    kind, num_draft_ids = draft_head["kind"], draft_head.get("num_draft_ids")
    try:
        spec = decoder_spec({key: value for key, value in config.items() if key != DRAFT_HEAD_KEY})
    except UnsupportedConfig as error:
        raise invalid_draft_head(folder, f"unsupported layers: {error}") from error
    expected = draft_head_shapes(spec, kind, num_draft_ids)
    if not (folder / WEIGHTS).exists():
        weight_files(folder, config)  # its error names what is there instead: a pickle, or nothing
    file = check_safetensors(folder / WEIGHTS)
    _check_tensors(folder, file.tensors, expected)
    return ModelConfig(
        model_type=str(model_type),
        vocab_rows=config["vocab_size"],
        max_positions=scaled_window(config, config.get("max_position_embeddings")),
        quant_method=None,
        dtype=FLOATS[file.tensors["norm.weight"].dtype],
        num_parameters=sum(tensor.num_values for name, tensor in file.tensors.items() if name != "draft_ids"),
        num_weight_bytes=file.num_bytes,
        widths_fit_blocks=config["hidden_size"] % 64 == 0 and config["intermediate_size"] % 64 == 0,
        draft_head=DraftHeadConfig(
            kind=kind,
            target_layers=tuple(draft_head["target_layers"]),
            target_name=draft_head["target_name"],
            target_digest=draft_head["target_digest"],
            num_draft_ids=num_draft_ids,
            spec=spec,
        ),
    )


def draft_head_shapes(spec: DecoderSpec, kind: DraftHeadKind, num_draft_ids: int | None) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that a draft head requires, by name: its layers, its norm and its own parts."""
    shapes = {
        name.removeprefix(PREFIX): shape for name, shape in tensor_shapes(spec).items() if name not in (EMBEDDING, HEAD)
    }
    if kind == "features":
        shapes["fc.weight"] = (spec.hidden_size, 2 * spec.hidden_size)
    if num_draft_ids is not None:
        shapes["draft_ids"] = (num_draft_ids,)
    return shapes


def shipped_draft(target: ResolvedModel, like: ModelSettings) -> ResolvedModel | None:
    """Returns the draft head in this package that was made for a target, to be loaded `like` that; None without one."""
    return next(draft_heads_of(target, shipped_folders(), like), None)


def unused_draft_notice(target: ResolvedModel) -> str | None:
    """Returns a notice if the built-in target runs on another backend than its draft head; None for other targets."""
    if target.fits_own_decoder or find_place(target.settings).kind != "built-in" or not shipped_folders():
        return None
    backend = "transformers" if target.gguf is None else "llama.cpp"
    return f"{target.name} on {backend} drafts by lookup alone: its draft head runs with --backend torch only"


def draft_heads_of(target: ResolvedModel, folders: Iterable[Path], like: ModelSettings) -> Iterator[ResolvedModel]:
    """Yields the draft heads in folders that were made for a target. Other folders, and damaged ones, are left out.

    Args:
        like: How they will be loaded, apart from the name.
    """
    digest = None
    for folder in folders:
        with suppress(ModelFileError):
            values = read_config(folder)
            if DRAFT_HEAD_KEY not in values:
                continue
            config = check_draft_head(values, folder)
            digest = digest or digest_of(target)
            if config.draft_head is not None and config.draft_head.target_digest == digest:
                settings = replace(like, name=str(folder))
                files = ModelFiles(folder, find_place(settings).name)
                yield ResolvedModel(files, settings, "draft", config, format="draft head")


def check_own_target(draft: ResolvedModel, target: ResolvedModel) -> None:
    """Refuses a draft head that can't run on a target.

    Raises:
        PairError: Something else runs the target, or the draft head was made for another one.
    """
    assert draft.draft_head is not None, "the format says so"
    if target.gguf is not None:
        raise PairError(
            f"the draft {draft.name} runs on its target's embeddings, which llama.cpp does not expose",
            "add --backend torch, or choose another draft",
        )
    if not target.fits_own_decoder:
        raise PairError(
            f"the draft {draft.name} needs a target that specgen runs itself, but transformers runs {target.name}",
            "omit --backend transformers, or choose another draft, as in --draft lookup",
        )
    if digest_of(target) != draft.draft_head.target_digest:
        raise PairError(
            f"the draft {draft.name} was made for another target ({draft.draft_head.target_name}) than {target.name}",
            "give the target it was made for with -t, or another draft with -d",
        )


def check_own_options(draft: ResolvedModel, target: ResolvedModel) -> None:
    """Refuses options that a part of a target can't have: it runs on its target's device, in its compute type.

    Raises:
        SettingsError: A device or a weight format is requested.
    """
    for option, value, accepted in (
        ("draft-device", draft.settings.device, ("auto", target.settings.device)),
        ("draft-quant", draft.settings.quant, ("auto", "none", "nf4", "int8")),
    ):
        if value not in accepted:
            raise SettingsError(
                f"--{option} {value} can't be applied to {draft.name}, which is a part of its target", "omit it"
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


def digest_of(target: ResolvedModel) -> str | None:
    """Returns the `target_digest` of a model's folder; None if its embeddings don't have the usual name."""
    from safetensors import safe_open

    for name in target.config.weight_files:
        with safe_open(target.path / name, "pt") as file:
            if EMBEDDING in file.keys():  # noqa: SIM118  it is not a mapping
                return target_digest(file.get_slice(EMBEDDING)[:NUM_DIGEST_ROWS], target.config.values)
    return None


def invalid_draft_head(folder: Path, reason: str) -> ModelFileError:
    """Returns the error for a draft head's folder that is damaged or inconsistent."""
    return ModelFileError(f"invalid draft head {folder}: {reason}", "make it again with specgen distill")


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
        "kind": part.get("kind") in FOLDER_KINDS,
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


def _check_tensors(folder: Path, stored: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compares the tensors in the weight file with the expected shapes."""
    both = expected.keys() & stored.keys()
    types = {name: ("I64",) if name == "draft_ids" else tuple(FLOATS) for name in stored}
    for problem, names in (
        ("missing tensors", expected.keys() - stored.keys()),
        ("unexpected tensors", stored.keys() - expected.keys()),
        ("tensors with a wrong shape", {name for name in both if stored[name].shape != expected[name]}),
        ("tensors of a wrong type", {name for name, tensor in stored.items() if tensor.dtype not in types[name]}),
    ):
        if names:
            raise invalid_draft_head(folder, f"{problem}: {listed(sorted(names))}")
