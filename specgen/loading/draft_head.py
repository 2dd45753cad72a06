"""Loads a draft head and joins it with its target's embeddings and head."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from specgen.core.errors import ModelFileError, PairError, first_line, library_failures
from specgen.core.progress import ProgressListener
from specgen.engine.contract import LanguageModel
from specgen.loading.draft_head_folder import PREFIX, WEIGHTS, invalid_draft_head
from specgen.loading.draft_head_parts import assembled, choose_format, drafting_head
from specgen.loading.resolved_model import LoadedModel, ResolvedModel
from specgen.models.build_decoder import build_layer, in_memory
from specgen.models.decoder_model import DecoderModel
from specgen.models.draft_head import DraftHeadParts
from specgen.models.draft_head_layers import DecoderLayers, FeatureJoin
from specgen.models.forward_pass import Norm
from specgen.models.fused_layers import fuse
from specgen.models.static.model import StaticModel
from specgen.models.tensor_names import NORM


def load_draft_head(
    resolved: ResolvedModel, vocab_size: int, progress: ProgressListener, target: LanguageModel | None
) -> LoadedModel:
    """Reads a draft head's weights and joins them with its target's embeddings and head.

    Args:
        vocab_size: Width of the target's logits.
        target: Its target, specgen's decoder; it records its features from now on, if the draft reads them.

    Raises:
        ModelFileError: The weights are damaged, or the layers are of an unsupported kind.
        SettingsError: The requested weight format is not available on this machine.
        PairError: It proposes tokens that the target does not have, or the target runs on transformers.
    """
    config, head, name = resolved.config, resolved.draft_head, resolved.name
    assert head is not None, "the format says so"
    assert head.spec is not None, "only a head in a checkpoint has none"
    progress.stage(f"loading draft {name}")
    decoder = target.decoder if isinstance(target, DecoderModel | StaticModel) else None
    if decoder is None or not isinstance(target, DecoderModel | StaticModel):
        raise PairError(
            f"the draft head {name} needs a target that specgen runs itself, but this one runs on transformers",
            "choose another draft, as in --draft lookup",
        )
    stored = load_tensors(resolved.path, config.vocab_rows or 0)
    columns = stored.pop("draft_ids", None)
    if columns is not None and int(columns[-1]) >= vocab_size:
        raise PairError(f"the draft {name} proposes token {int(columns[-1])}, but the target has {vocab_size} tokens")
    # On the device of the target's head, and in its type.
    device = decoder.output_device
    tensors = {key: tensor.to(device=device, dtype=decoder.dtype) for key, tensor in stored.items()}
    join = tensors.pop("fc.weight", None)
    weight_format = choose_format(
        resolved.settings.quant, tensors["layers.0.mlp.down_proj.weight"], decoder, decoder.head
    )
    named = in_memory({PREFIX + key: tensor for key, tensor in tensors.items()})
    norm = Norm(named(NORM), head.spec)
    layers = [
        fuse(build_layer(head.spec, index, named, weight_format.linear, decoder.dtype))
        for index in range(len(head.spec.layers))
    ]
    embedding = decoder.embedding.to(device)  # a copy, if the target's layers are on several devices
    tied = embedding if decoder.spec.is_tied else None
    parts = DraftHeadParts(
        layers=DecoderLayers(head.spec, layers, norm.weight.to(decoder.dtype)),
        norm=norm,
        embedding=embedding,
        head=drafting_head(decoder.head, tied, weight_format, decoder.dtype, columns),
        dtype=decoder.dtype,
        vocab_size=vocab_size if columns is None else columns.shape[0],
        columns=None if columns is None else columns.to(device),
        join=None if join is None else FeatureJoin(weight_format.linear(join, None)),
        features=None if join is None else target.record_target_features(),
    )
    return assembled(resolved, parts, weight_format, target, decoder.head)


def load_tensors(folder: Path, num_target_ids: int) -> dict[str, Tensor]:
    """Reads the weights, as stored.

    Args:
        folder: The draft head; its tensors must have been checked.
        num_target_ids: Rows of the target's embeddings.

    Raises:
        ModelFileError: They can't be read, contain NaN or infinity, or `draft_ids` are not ascending target ids.
    """
    path = folder / WEIGHTS
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except library_failures() as error:
        raise ModelFileError(f"{path} can't be read: {first_line(error)}", "make the draft again") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
            raise invalid_draft_head(folder, f"the tensor {name} contains NaN or infinity")
    ids = tensors.get("draft_ids")
    if ids is not None:
        is_ascending = bool((ids[1:] > ids[:-1]).all())
        if not is_ascending or int(ids[0]) < 0 or int(ids[-1]) >= num_target_ids:
            raise invalid_draft_head(folder, "draft_ids are not ascending ids of the target's vocabulary")
    return tensors
