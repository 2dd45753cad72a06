"""The 4-bit layer for CUDA computes what its dequantized weights compute; on a CPU by bitsandbytes' reference."""

from __future__ import annotations

import pytest
import torch
import transformers

from specgen.models import decoder_model as decoder_module
from specgen.models.cuda import recorded
from specgen.models.decoder_model import DecoderModel
from specgen.models.gemm_4bit import GemmNf4Linear, fits_gemm
from specgen.models.static.model import StaticModel
from tests.decoders import decoder_of
from tests.fake_cuda import FAKE, fake_cuda
from tests.fakes import TINY
from tests.models.static.recorder import Trace, TraceRecorder, tensors_in

pytest.importorskip("bitsandbytes")


def dequantized(weight: torch.Tensor) -> torch.Tensor:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    return functional.dequantize_4bit(packed, state)


@pytest.mark.parametrize("num_rows", [1, 5, 17])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_that_of_the_dequantized_weights(num_rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 128, generator=generator).bfloat16()
    bias = torch.randn(96, generator=generator).bfloat16() if has_bias else None
    inputs = torch.randn(num_rows, 128, generator=generator).bfloat16()

    found = GemmNf4Linear(weight, bias)(inputs)

    expected = torch.nn.functional.linear(
        inputs.float(), dequantized(weight).float(), None if bias is None else bias.float()
    )
    assert found.dtype == torch.bfloat16
    assert float((found - expected).norm() / expected.norm()) < 2 * torch.finfo(torch.bfloat16).eps


def test_joined_weights_are_the_weights_of_the_parts() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(rows, 64, generator=generator).bfloat16() for rows in (32, 8, 8)]

    joined = GemmNf4Linear(torch.cat(parts), None)
    inputs = torch.eye(64).bfloat16()

    assert torch.equal(joined(inputs).T, torch.cat([dequantized(part) for part in parts]))


def test_only_cuda_weights_of_whole_blocks_fit() -> None:
    assert not fits_gemm(torch.zeros(64, 64, dtype=torch.bfloat16))
    assert not fits_gemm(torch.zeros(64, 96, dtype=torch.bfloat16, device="meta"))


def test_its_size_is_half_a_byte_a_weight_and_the_scales() -> None:
    assert GemmNf4Linear(torch.ones(128, 256).bfloat16(), None).num_bytes == 128 * 256 // 2 + 128 * 256 // 64 * 4


def test_a_draft_on_cuda_computes_every_logit_with_its_4_bit_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of drafted tokens, too: each recorded pass has one product with the packed head, and none with the old."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**TINY, "hidden_size": 64, "num_hidden_layers": 1})
    original = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)
    # Not a test of speed.
    monkeypatch.setattr(decoder_module, "faster_of", lambda usual, other, row: other)
    recorder = TraceRecorder()
    with fake_cuda(monkeypatch):
        plain = DecoderModel(decoder_of(original).to(FAKE), 96)
        dense_head = plain.decoder.head
        dense = plain.logits([1, 2, 3], 1).clone()
        plain.reset()
        plain.use_nf4_head()
        found = recorded(plain, recorder, is_draft=True)
        assert isinstance(found.model, StaticModel), found.reason
        found.model.draft_token([1, 2, 3], 0)
        logits = found.model.drafted_logits().cpu()
        similarity = torch.cosine_similarity(logits.flatten(), dense.cpu().flatten(), dim=0)

    assert isinstance(plain.decoder.head, GemmNf4Linear)
    assert {"draft", "step"} == {key[0] for key in found.model.replays.recorded_keys}
    products = [[call for call in trace.calls if "gemm_4bit" in str(call[0])] for trace in recorder.traces]
    assert [[call[1][2] for call in calls] for calls in products] == [[[96, 64]]] * len(recorder.traces)
    pointer = dense_head.weight.data_ptr()
    assert not any(tensor.data_ptr() == pointer for trace in recorder.traces for tensor in inputs_of(trace))
    assert 0.9 < float(similarity) < 0.9999


def inputs_of(trace: Trace) -> list[torch.Tensor]:
    return [tensor for call in trace.calls for tensor in tensors_in(call[1:3])]
