"""Operations of a recorded pass. On a card each one is a kernel, and their number decides a small draft's speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from specgen.loading.decoder_weights import dense_linear
from specgen.models import forward_pass
from specgen.models.gemm_4bit import GemmNf4Linear
from specgen.models.static import slots
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from tests.decoders import decoder_of
from tests.fake_cuda import FAKE, fake_cuda
from tests.fakes import TINY
from tests.models.static.recorder import TraceRecorder

MOST = {1: 17, 5: 19}
"""Operations of a layer by the rows of the pass; views are none. In transformers' own passes they are 42."""


def nf4_on_the_card(weight: torch.Tensor, bias: torch.Tensor | None) -> GemmNf4Linear:
    return GemmNf4Linear(weight.to(FAKE), None if bias is None else bias.to(FAKE))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, Any]]]:
    def operations(num_layers: int, num_rows: int, linear: Any = dense_linear) -> list[tuple[str, Any]]:
        """Returns the operations of a pass of a decoder in bfloat16 with grouped heads, and their arguments."""
        sizes = {**TINY, "hidden_size": 64, "num_hidden_layers": num_layers}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).to(torch.bfloat16).eval()
        recorder = TraceRecorder()
        with monkeypatch.context() as patch, fake_cuda(patch):
            static = StaticModel(DecoderPass(decoder_of(model, linear).to(FAKE)), 96, recorder)
            for _ in range(2):
                static.rewind(0)
                static.logits(list(range(num_rows)), num_rows)
        (trace,) = recorder.traces
        return [(str(func), args) for func, args, _, _ in trace.repeated]

    return operations


def of_a_layer(operations: Callable[..., Any], num_rows: int, linear: Any = dense_linear) -> Counter[str]:
    one, two = (Counter(name for name, _ in operations(number, num_rows, linear)) for number in (1, 2))
    return two - one


@pytest.mark.parametrize("num_rows", MOST)
@pytest.mark.parametrize(
    ("linear", "product"), [(dense_linear, "aten.linear"), (nf4_on_the_card, "bitsandbytes.gemm_4bit")]
)
def test_a_layer_has_few_operations(recorded: Any, linear: Any, product: str, num_rows: int) -> None:
    """Its products are joined to four, its norms are one operation, and the mask is made once a pass."""
    found = of_a_layer(recorded, num_rows, linear)

    assert found.total() <= MOST[num_rows], found
    assert sum(number for name, number in found.items() if name.startswith(product)) == 4
    assert found["aten.rms_norm.default"] == 2


@pytest.mark.parametrize("num_rows", MOST)
def test_the_heads_of_a_group_are_rows_of_one(recorded: Any, num_rows: int) -> None:
    """Kernels for a mask and grouped heads are slow, or copy keys and values of the whole capacity."""
    (attention,) = [args for name, args in recorded(1, num_rows) if "scaled_dot_product_attention" in name]

    queries, keys = attention[:2]
    group = TINY["num_attention_heads"] // TINY["num_key_value_heads"]
    assert group > 1
    assert queries.shape[1] == keys.shape[1] == TINY["num_key_value_heads"]
    assert queries.shape[2] == group * num_rows


def norm_in_parts(spec: Any, weight: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    return weight * torch.rms_norm(hidden, weight.shape, eps=spec.norm_epsilon)


def test_a_norm_in_two_operations_is_seen(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_pass, "fused_norm", norm_in_parts)

    with pytest.raises(AssertionError):
        test_a_layer_has_few_operations(recorded, dense_linear, "aten.linear", 1)


def test_a_mask_for_each_layer_is_seen(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = slots.TensorSlots._bias

    def again(self: slots.TensorSlots, window: int | None) -> torch.Tensor:
        self._biases = {}
        return original(self, window)

    monkeypatch.setattr(slots.TensorSlots, "_bias", again)

    with pytest.raises(AssertionError):
        test_a_layer_has_few_operations(recorded, dense_linear, "aten.linear", 1)
