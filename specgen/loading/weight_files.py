"""Finds the files that hold a model's weights, and says what a folder without them has. Opens no weight file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

from specgen.core.errors import ModelFileError
from specgen.core.model_files import corrupt, read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.msgpack", "*.h5")
_OTHER_FORMATS = {
    "adapter_config.json": "this is an adapter (LoRA): merge it into its base model first",
    "model_index.json": "these are the files of a model that draws images",
    "params.json": "params.json is of Mistral's or Meta's own format: use the version of the model with a config.json",
    "*.onnx": "{} is of ONNX, which specgen does not read: use the original model",
    "onnx/*.onnx": "{} is of ONNX, which specgen does not read: use the original model",
    "*.mlmodelc": "{} is of Core ML, which specgen does not read: use the original model",
}
"""What files of other formats say about a folder without a model, by pattern."""


def weight_files(folder: Path, config: dict[str, Any]) -> list[str]:
    """Returns the names of a model's safetensors files.

    Raises:
        ModelFileError: Files are missing, or the weights are in a format that can contain code.
    """
    chosen = config.get("transformers_weights")
    if chosen is not None:  # transformers reads this file instead of model.safetensors
        if not _is_plain_name(chosen) or not chosen.endswith((".safetensors", ".safetensors.index.json")):
            raise ModelFileError(
                f"{folder / 'config.json'} names the weights {chosen!r}, which is not a safetensors file in its folder"
            )
        return _shards(folder, chosen) if chosen.endswith(".index.json") else [chosen]
    if (folder / SINGLE_FILE).exists():
        return [SINGLE_FILE]
    if (folder / INDEX_FILE).exists():
        return _shards(folder, INDEX_FILE)
    pickles = [path.name for pattern in _PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        raise ModelFileError(
            f"{folder} has its weights in {pickles[0]}, which can run code: only safetensors and GGUF are read",
            "look for a safetensors version of the model",
        )
    raise ModelFileError(f"{folder} has no {SINGLE_FILE}", hint_for_content(folder))


def _shards(folder: Path, index: str) -> list[str]:
    path = folder / index
    names = _shard_names(read_json(path), path)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ModelFileError(
            f"incomplete: {len(missing)} of the {len(names)} weight files named by {index} are missing, "
            f"the first is {missing[0]}",
            "download the model again",
        )
    return names


def hint_for_content(folder: Path) -> str:
    """Returns a hint based on what else is in a folder."""
    for name, what in _OTHER_FORMATS.items():
        if found := sorted(folder.glob(name)):
            return what.format(found[0].name)
    if found := sorted(folder.glob("*.gguf")):
        return f"it contains a GGUF file: use {found[0]}"
    if found := sorted([*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]):
        return f"did you mean {found[0].parent}?"
    if found := sorted(folder.glob("*.safetensors")):
        if len(found) == 1:
            return f"if {found[0].name} is the whole model, rename it to {SINGLE_FILE}"
        return f"{INDEX_FILE} is missing, which names its {len(found)} safetensors files: download it again"
    return "use a folder with config.json, tokenizer.json and safetensors"


def _shard_names(index: dict[str, object], path: Path) -> list[str]:
    """Returns the file names in an index; only safetensors files in the same folder are allowed.

    Raises:
        ModelFileError: The weight map is missing, or names another file.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise corrupt(path, "no weight_map")
    names = dict.fromkeys(weight_map.values())
    for name in names:
        if not _is_plain_name(name) or not name.endswith(".safetensors"):
            raise ModelFileError(f"{path} names the file {name!r}, which is not a safetensors file in its folder")
    return list(names)


def _is_plain_name(name: object) -> TypeGuard[str]:
    """Returns whether a file name can't refer to a file in another folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(char in name for char in "/\\:\0")
