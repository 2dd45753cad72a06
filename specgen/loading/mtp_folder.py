"""Finds the multi-token-prediction head (MTP) in a target's checkpoint. Reads no weights and imports no torch.

transformers leaves out these tensors when it loads the model. There are two styles of names: `mtp.fc`,
`mtp.pre_fc_norm_embedding`, ... with a layer `mtp.layers.0` (Qwen3-Next, Qwen3.5, Mellum), and a further layer after
the last one, `model.layers.N.eh_proj`, `enorm`, ... (DeepSeek-V3, GLM-4.5).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specgen.core.draft_name import MTP_NAME
from specgen.core.errors import ModelFileError, PairError
from specgen.core.model_files import listed
from specgen.core.settings import ModelSettings
from specgen.loading.config_reader import text_config
from specgen.loading.draft_head_folder import FLOATS
from specgen.loading.resolved_model import DraftHeadConfig, ModelConfig, ModelFiles, ResolvedModel
from specgen.loading.safetensors_check import StoredTensor, stored_tensors

MODEL_TYPES = frozenset(
    {"deepseek_v3", "glm4_moe", "mellum", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"}
)
"""Architectures whose head was compared with a reference: see the tests."""

INSTEAD = "use the original checkpoint, because many conversions drop the head, or another draft: --draft lookup"
_NUMBER_KEYS = ("mtp_num_hidden_layers", "num_nextn_predict_layers", "num_mtp_layers")
_APART = ("fc", "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
_AS_A_LAYER = ("eh_proj", "enorm", "hnorm", "shared_head.norm")
"""Names in the two styles: the product, the norms of embeddings and features, and the last norm."""
_SHARED = ("embed_tokens.weight", "shared_head.head.weight")
"""Copies of the target's embedding and head in some checkpoints."""
_LAYER = re.compile(r"(.*\blayers)\.([0-9]{1,6})\.(.+)")
"""Python refuses to read numbers of thousands of digits, and a file may name anything."""


@dataclass(frozen=True, slots=True)
class MtpTensors:
    """Names of a head's tensors in the checkpoint.

    Args:
        own: Of the product, the norms of embeddings and features, and the last norm, in this order.
        layer: Of the decoder layer, by their names in that layer.
        num_layers: Layers that the checkpoint has; the first one is used.
        prefixes: What the names of all tensors of these layers begin with.
    """

    own: tuple[str, str, str, str]
    layer: Mapping[str, str]
    num_layers: int
    prefixes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Returns all of them."""
        return (*self.own, *self.layer.values())


def has_mtp(target: ResolvedModel) -> bool:
    """Returns whether a complete head is in a target's checkpoint, and its architecture is supported."""
    try:
        resolve_mtp(target, ModelSettings(MTP_NAME))
    except (ModelFileError, PairError):
        return False
    return True


def without_mtp(names: Collection[str], target: ResolvedModel) -> list[str]:
    """Returns tensors apart from those of a target's head."""
    try:
        found = find_mtp(names, _size(text_config(target.config.values), "num_hidden_layers"), target.path)
    except ModelFileError:
        found = None
    return [name for name in names if found is None or not name.startswith(found.prefixes)]


def resolve_mtp(target: ResolvedModel, settings: ModelSettings) -> ResolvedModel:
    """Returns the head in a target's checkpoint as a draft.

    Raises:
        PairError: The target has none, or runs on code that shows no features.
        ModelFileError: Tensors are missing, or have a wrong shape or an unsupported type.
    """
    if target.gguf is not None or target.fits_own_decoder or target.config.model_type not in MODEL_TYPES:
        kind = "GGUF files" if target.gguf is not None else f"the model type {target.config.model_type}"
        raise PairError(f"the MTP head of {target.name} can't be used: {kind}", "use another draft: --draft lookup")
    stored = tensors_of(target)
    text = text_config(target.config.values)
    found = find_mtp(stored, _size(text, "num_hidden_layers"), target.path)
    if found is None:
        named = next((f"; its config names {text[key]}" for key in _NUMBER_KEYS if text.get(key)), "")
        raise PairError(f"the checkpoint of {target.name} has no MTP head{named}", INSTEAD)
    own = {name: stored[name] for name in found.names}
    _check_own(own, found, _size(text, "hidden_size"), target.path)
    dtype = Counter(tensor.dtype for tensor in own.values()).most_common(1)[0][0]
    head = DraftHeadConfig("mtp", (), target.name, "", None, None, num_unused=found.num_layers - 1)
    config = ModelConfig(
        model_type=target.config.model_type,
        vocab_rows=target.config.vocab_rows,
        max_positions=target.config.max_positions,
        quant_method=None,
        dtype=FLOATS[dtype],
        num_parameters=sum(tensor.num_values for tensor in own.values()),
        num_weight_bytes=sum(tensor.num_bytes for tensor in own.values()),
        widths=target.config.widths,
        widths_fit_blocks=target.config.widths_fit_blocks,
        weight_files=target.config.weight_files,
        draft_head=head,
        values={**text, "num_hidden_layers": 1},
    )
    files = ModelFiles(target.path, MTP_NAME)
    return ResolvedModel(files, replace(settings, name=MTP_NAME), "draft", config, format="mtp")


def tensors_of(target: ResolvedModel) -> dict[str, StoredTensor]:
    """Returns what the headers of a model's files say of all its tensors."""
    names = target.config.weight_files
    return {name: tensor for file in names for name, tensor in stored_tensors(target.path / file).items()}


def _size(text: Mapping[str, Any], key: str) -> int:
    """Returns a size of the config, or 0 if it is not one integer. No head fits a size of 0."""
    value = text.get(key)
    return value if isinstance(value, int) else 0


def find_mtp(names: Collection[str], num_hidden_layers: int, folder: Path) -> MtpTensors | None:
    """Finds the tensors of a head by their names.

    Args:
        names: Of all tensors in the checkpoint.
        num_hidden_layers: Of the target.
        folder: For messages.

    Returns:
        None without a trace of a head.

    Raises:
        ModelFileError: Some of its tensors are missing.
    """
    layers = _layers(names)
    reference = _attention_layer(layers, num_hidden_layers)
    for stack in sorted({stack for stack, _ in layers} | {"mtp.layers"}):
        is_apart = re.search(r"(^|\.)mtp\.layers$", stack) is not None
        first = 0 if is_apart else num_hidden_layers
        prefix = stack.removesuffix("layers") if is_apart else f"{stack}.{first}."
        own = [f"{prefix}{name}.weight" for name in (_APART if is_apart else _AS_A_LAYER)]
        apart = {*own, *(f"{prefix}{name}" for name in _SHARED)}
        layer = {rest: name for rest, name in layers.get((stack, first), {}).items() if name not in apart}
        if not layer and not any(name in names for name in own):
            continue
        missing = [name for name in own if name not in names]
        missing += [f"{stack}.{first}.{rest}" for rest in sorted(reference - set(map(_without_expert, layer)))]
        if missing:
            raise ModelFileError(f"the MTP head in {folder} is incomplete: missing tensors: {listed(missing)}", INSTEAD)
        indices = [index for found, index in layers if found == stack and index >= first]
        prefixes = (prefix,) if is_apart else tuple(f"{stack}.{index}." for index in indices)
        return MtpTensors((own[0], own[1], own[2], own[3]), layer, len(indices), prefixes)
    return None


def _layers(names: Iterable[str]) -> dict[tuple[str, int], dict[str, str]]:
    """Returns the tensors of each layer by their names within it; a layer is a stack of layers and an index."""
    layers: dict[tuple[str, int], dict[str, str]] = {}
    for name in names:
        if found := _LAYER.fullmatch(name):
            layers.setdefault((found[1], int(found[2])), {})[found[3]] = name
    return layers


def _attention_layer(layers: Mapping[tuple[str, int], Mapping[str, str]], num_hidden_layers: int) -> set[str]:
    """Returns the tensors of the target's last layer with attention, whose kind is that of the head's layer."""
    attending = [
        (index, set(map(_without_expert, rests)))
        for (stack, index), rests in layers.items()
        if index < num_hidden_layers and "mtp." not in stack and any(rest.startswith("self_attn.") for rest in rests)
    ]
    return max(attending, key=lambda item: item[0], default=(0, set()))[1]


def _without_expert(name: str) -> str:
    """Returns one name for all experts: some checkpoints have one tensor in a layer and single ones in the head."""
    return re.sub(r"\.experts\..*", ".experts", name)


def _check_own(stored: Mapping[str, StoredTensor], head: MtpTensors, hidden: int, folder: Path) -> None:
    """Checks the shapes of the product and the norms, and all types; those of the layer are checked when it is built.

    Raises:
        ModelFileError: One of them is wrong.
    """
    shapes = ((hidden, 2 * hidden), (hidden,), (hidden,), (hidden,))
    misshapen = [name for name, shape in zip(head.own, shapes, strict=True) if stored[name].shape != shape]
    typed = [f"{name} ({tensor.dtype})" for name, tensor in stored.items() if tensor.dtype not in FLOATS]
    for names, problem in ((misshapen, "tensors with a wrong shape"), (typed, "tensors of an unsupported type")):
        if names:
            raise ModelFileError(f"the MTP head in {folder} can't be used: {problem}: {listed(sorted(names))}", INSTEAD)
