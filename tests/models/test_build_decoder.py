"""Layers from tensors and back: what training saves is what loading reads."""

from __future__ import annotations

import pytest
import torch

from specgen.distill.draft import trainable_copy
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.decoder_weights import dense_linear
from specgen.models.build_decoder import build_layer, in_memory, layer_tensors
from specgen.models.decoder import Layer
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.kv_slots import SliceSlots
from specgen.models.tensor_names import EMBEDDING, HEAD, NORM, layer_prefix, tensor_shapes
from tests.fakes import assert_close
from tests.models.test_decoder import BUILDERS, FAMILIES, build


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_checkpoint_has_exactly_the_tensors_that_the_spec_requires(kind: str) -> None:
    model = build(kind)
    spec = decoder_spec(model.config.to_dict())
    stored = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if spec.is_tied:
        stored.pop(HEAD, None)

    assert tensor_shapes(spec) == stored


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_tensors_of_built_layers_are_those_of_the_checkpoint(kind: str) -> None:
    model = build(kind)
    spec = decoder_spec(model.config.to_dict())
    stored = model.state_dict()

    found: dict[str, torch.Tensor] = {}
    for index in range(len(spec.layers)):
        found |= layer_tensors(spec, build_layer(spec, index, in_memory(stored), dense_linear, torch.float32), index)

    assert found.keys() == stored.keys() - {EMBEDDING, NORM, HEAD}
    for name, tensor in found.items():
        if spec.norm_offset and "norm" in name:
            # The offset was added and subtracted.
            assert_close(tensor, stored[name])
        else:
            assert torch.equal(tensor, stored[name]), name


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_trained_copy_comes_back_as_the_same_layer(kind: str) -> None:
    """As in `specgen distill`: copied to another place in float32, trained, saved, loaded."""
    model = build(kind, torch.bfloat16)
    spec = decoder_spec(model.config.to_dict())
    stored = model.state_dict()
    original = build_layer(spec, 1, in_memory(stored), dense_linear, torch.bfloat16)

    copied = trainable_copy(original, 0)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1.0)
    saved = {name: tensor.detach() for name, tensor in layer_tensors(spec, copied, 0).items()}
    loaded = build_layer(spec, 0, in_memory(saved), dense_linear, torch.float32)

    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in copied.parameters())
    for name, tensor in saved.items():
        before = stored[name.replace(layer_prefix(0), layer_prefix(1))]
        assert torch.equal(tensor, before.float() + 1.0), name
    again = layer_tensors(spec, loaded, 0)
    assert again.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in again.items())
    assert torch.equal(original.attention.qkv_proj.weight, torch.cat(_rows(stored, spec.has_fused_tensors)))
    assert torch.equal(_outputs(copied, spec), _outputs(loaded, spec)), "the copy computes with its own weights"


@torch.no_grad()
def _outputs(layer: Layer, spec: DecoderSpec) -> torch.Tensor:
    inputs = torch.randn(3, spec.hidden_size, generator=torch.Generator().manual_seed(0))
    slots = SliceSlots(spec, inputs)
    return layer(inputs, slots.begin(0, 3), slots)


def _rows(stored: dict[str, torch.Tensor], is_fused: bool) -> list[torch.Tensor]:
    names = ("qkv_proj",) if is_fused else ("q_proj", "k_proj", "v_proj")
    return [stored[f"{layer_prefix(1)}self_attn.{name}.weight"] for name in names]
