"""Loads the multi-token-prediction head in a target's checkpoint, and joins it with its target's embeddings and head.

Its layer runs on transformers' code, as its target does. The head reads the inputs of the target's head, after the last
norm. So do all engines for Qwen3.5 and 3.6, and so it was measured to be accepted more often
(ggml-org/llama.cpp#24025, ModelTC/LightLLM#1402); the code in DeepSeek's checkpoints says the same (ROCm/ATOM#1764).

For a further token, the head reads its own output after its norm, as transformers' `MtpModel` does. vLLM 0.32 does so
for Qwen and DeepSeek; for GLM-4.5 it feeds the output before the norm. Others measured that drafts are accepted more
often after the norm: DeepSeek-R1 yields 2.94 instead of 2.84 tokens per pass at three drafted tokens (ROCm/ATOM#1764),
GLM-5.2 3.46 instead of 3.04 (ROCm/ATOM#1742).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from specgen.core.errors import ModelFileError, PairError
from specgen.core.model_files import listed
from specgen.core.progress import ProgressListener
from specgen.engine.contract import LanguageModel
from specgen.loading.decoder_weights import IGNORED_SUFFIX, check_finite_tensor, dense_linear
from specgen.loading.draft_head_parts import HeadFormat, assembled, choose_format, drafting_head
from specgen.loading.mtp_folder import INSTEAD, find_mtp
from specgen.loading.resolved_model import LoadedModel, ResolvedModel
from specgen.loading.tensor_files import TensorFiles
from specgen.models.cached_model import CachedModel
from specgen.models.draft_head import DraftHeadParts
from specgen.models.draft_head_layers import FeatureJoin
from specgen.models.mtp_layers import TransformersLayer, mtp_block


def load_mtp(
    resolved: ResolvedModel, vocab_size: int, progress: ProgressListener, target: LanguageModel | None
) -> LoadedModel:
    """Reads the head's weights and joins them with its target's embeddings and head.

    Args:
        vocab_size: Width of the target's logits.
        target: Its target, on transformers' code; it records its features from now on.

    Raises:
        ModelFileError: A tensor of the layer is missing, unexpected, or has a wrong shape.
        NumericalError: A norm contains NaN or infinity.
        SettingsError: The requested weight format is not available on this machine.
        PairError: Something else than transformers runs the target.
    """
    model: Any = target.module if isinstance(target, CachedModel) else None
    if not isinstance(target, CachedModel) or not hasattr(model, "get_decoder"):
        raise PairError("an MTP head needs a target that runs on transformers' code", "use --draft lookup")
    progress.stage("loading the MTP head")
    decoder, config = model.get_decoder(), model.config.get_text_config()
    weight: Tensor = decoder.norm.weight
    device, dtype = weight.device, weight.dtype
    files = TensorFiles(resolved.path, resolved.config.weight_files)
    names = find_mtp(files.shapes, config.num_hidden_layers, resolved.path)
    assert names is not None, "it was found before"
    read = _Reader(files, resolved, device, dtype)

    def norm(name: str) -> nn.Module:
        made: nn.Module = type(decoder.norm)(config.hidden_size, eps=config.rms_norm_eps)
        made.weight = nn.Parameter(read.tensor(name), requires_grad=False)
        return made.requires_grad_(False)

    product = dense_linear(read.tensor(names.own[0]), None)
    head: nn.Module = model.get_output_embeddings()
    weight_format = choose_format(resolved.settings.quant, product.weight, model, head)
    block = mtp_block(model)
    _fill(block, dict(names.layer), read)
    join = FeatureJoin(product, norm(names.own[1]), norm(names.own[2]))
    for part in (block, join):
        _convert(part, weight_format)
    embedding: Tensor = model.get_input_embeddings().weight.to(device)
    parts = DraftHeadParts(
        layers=TransformersLayer(block, decoder.rotary_emb, config),
        norm=norm(names.own[3]),
        embedding=embedding,
        head=drafting_head(head, embedding if config.tie_word_embeddings else None, weight_format, dtype),
        dtype=dtype,
        vocab_size=vocab_size,
        join=join,
        features=target.record_target_features(),
        skips_first=True,
    )
    return assembled(resolved, parts, weight_format, target, head)


class _Reader:
    """Reads tensors of a checkpoint in the type and to the device of its target's head."""

    def __init__(self, files: TensorFiles, resolved: ResolvedModel, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.shapes = resolved.path, files.shapes
        self._files, self._device, self._dtype = files, device, dtype

    def tensor(self, *names: str) -> Tensor:
        """Returns tensors, joined along their first dimension."""
        found = self._files.read(*names, device=self._device).to(self._dtype)
        if found.ndim == 1:
            check_finite_tensor(", ".join(names), found, self.folder)
        return found


def _fill(block: nn.Module, names: dict[str, str], read: _Reader) -> None:
    """Reads the weights of a layer without memory for them.

    Args:
        names: The tensors in the checkpoint by their names in the layer.

    Raises:
        ModelFileError: A tensor is missing, unexpected, or has a wrong shape.
    """
    missing, misshapen, used, tensors = [], [], set(), {}
    for name, like in block.state_dict().items():
        is_fused = name not in names and like.ndim == 3
        parts = _expert_tensors(name, like.shape[0]) if is_fused else [name]
        used |= set(parts)
        if absent := [part for part in parts if part not in names]:
            missing += absent
            continue
        joined_rows = like.flatten(0, 1) if is_fused else like
        # All parts have the same shape; parts of several shapes would be joined into other weights.
        expected = (joined_rows.shape[0] // len(parts), *joined_rows.shape[1:])
        if wrong := [names[part] for part in parts if read.shapes[names[part]] != expected]:
            misshapen += wrong
        else:
            tensors[name] = read.tensor(*(names[part] for part in parts)).view(like.shape)
    unexpected = [own for name, own in names.items() if name not in used and not name.endswith(IGNORED_SUFFIX)]
    for found, problem in (
        (missing, "missing tensors"),
        (misshapen, "tensors with a wrong shape"),
        (unexpected, "unexpected tensors"),
    ):
        if found:
            message = f"the MTP head in {read.folder} can't be used: {problem}: {listed(sorted(found))}"
            raise ModelFileError(message, INSTEAD)
    block.load_state_dict(tensors, assign=True)


def _expert_tensors(name: str, num_experts: int) -> list[str]:
    """Returns the names of the single experts' tensors that a fused tensor of all experts consists of."""
    stem, _, kind = name.rpartition(".")
    products = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
    return [f"{stem}.{index}.{product}.weight" for index in range(num_experts) for product in products]


def _convert(module: nn.Module, weight_format: HeadFormat) -> None:
    """Replaces the linear layers of a module by those of a weight format, in place."""
    linear = [
        (parent, name, layer)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear
    ]
    for parent, name, layer in linear:
        setattr(parent, name, weight_format.linear(layer.weight, layer.bias))
