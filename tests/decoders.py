"""Decoders of our own, built from transformers models in memory: the same weights for both sides of a comparison."""

from __future__ import annotations

from typing import Any

import torch

from specgen.loading.decoder_families import decoder_spec
from specgen.loading.decoder_weights import dense_linear
from specgen.models.build_decoder import MakeLinear, build_layer, in_memory
from specgen.models.decoder import Decoder
from specgen.models.decoder_model import DecoderModel
from specgen.models.forward_pass import Norm
from specgen.models.tensor_names import EMBEDDING, HEAD, NORM


def decoder_of(model: Any, linear: MakeLinear = dense_linear) -> Decoder:
    """Returns the decoder that a transformers model's config describes, on copies of its weights and in their type.

    Args:
        model: A transformers causal language model.
        linear: Makes the matrix products.
    """
    spec = decoder_spec(model.config.to_dict())
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    dtype: torch.dtype = tensors[EMBEDDING].dtype
    layers = [build_layer(spec, index, in_memory(tensors), linear, dtype) for index in range(len(spec.layers))]
    embedding = tensors[EMBEDDING]
    head = linear(embedding if spec.is_tied else tensors[HEAD], None)
    return Decoder(spec, embedding, layers, Norm(tensors[NORM], spec), head).eval().requires_grad_(False)


def decoder_model(model: Any, vocab_size: int, linear: MakeLinear = dense_linear) -> DecoderModel:
    """`decoder_of` with a cache."""
    return DecoderModel(decoder_of(model, linear), vocab_size)
