"""Counts a model's weights by the modules that hold them, without memory for the weights.

Files don't show it: experts are stored one by one and run as one fused tensor, which is not a linear layer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from specgen.core.errors import library_failures
from specgen.loading.resolved_model import ModelConfig, ModuleSizes
from specgen.models.quantized import fits_cpu_kernel


def empty_model(folder: Path) -> Any:
    """Returns a folder's model as transformers builds it, unquantized, with weights on the meta device."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    auto_config: Any = AutoConfig
    auto_model: Any = AutoModelForCausalLM
    config = auto_config.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    # Weights without memory have no values: to initialize them took half of the time.
    with init_empty_weights(), no_init_weights():
        model = auto_model.from_config(config, trust_remote_code=False)
    model.tie_weights()
    return model


def dense_layers(folder: Path) -> list[str]:
    """Returns the linear layers that a CPU with a 4-bit kernel can't run in 4 bits, and the head; empty if all can.

    bitsandbytes gives every layer to that kernel, which fails for others than whole blocks. Such layers are small: the
    gates of Qwen3.5 have one row per head.
    """
    import torch

    model = empty_model(folder)
    linear = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    head = model.get_output_embeddings()
    unfit = [name for name, part in linear.items() if part is not head and not fits_cpu_kernel(part.weight)]
    # transformers leaves out the head by itself only if nothing is named.
    return [*unfit, *(name for name, part in linear.items() if part is head)] if unfit else []


def with_module_sizes(config: ModelConfig, folder: Path) -> ModelConfig:
    """Returns a config with the sizes of the model's modules, if transformers runs it.

    A model that can't be built is left as it is: loading it gives the reason.
    """
    if config.decoder is not None or config.draft_head is not None:
        return config
    try:
        return replace(config, modules=_module_sizes(empty_model(folder)))
    except library_failures():
        return config


def _module_sizes(model: Any) -> ModuleSizes:
    import torch
    from transformers.pytorch_utils import Conv1D

    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    head_weight = None if head is None else head.weight
    apart = {id(embedding), id(head_weight)}
    sizes = {"linear": 0, "conv1d": 0}
    for module in model.modules():
        kind = "linear" if type(module) is torch.nn.Linear else "conv1d" if isinstance(module, Conv1D) else ""
        if kind and id(module.weight) not in apart:
            apart.add(id(module.weight))
            sizes[kind] += module.weight.numel()
    return ModuleSizes(
        **sizes,
        embedding=embedding.numel(),
        head=0 if head_weight is None else head_weight.numel(),
        is_tied=head_weight is embedding,
        rest=sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in apart),
    )
