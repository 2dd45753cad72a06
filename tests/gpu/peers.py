"""Part 9: transformers' own generation next to specgen's, with the same weights and the same prompt, in one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import torch

from specgen.engine.drafters.base import NoDrafter
from specgen.models.decoder import Decoder
from specgen.models.static.model import StaticModel
from tests.gpu.isolation import described
from tests.gpu.loop import PROMPT, Loop
from tests.gpu.models import (
    Quant,
    config_of,
    quantize_layers,
    random_decoder,
    spec_of,
    static_model,
    transformers_model,
    with_nf4_head,
)
from tests.gpu.report import Context
from tests.gpu.timing import Timer

ALPHA, NUM_DRAFT_TOKENS = 0.8, 4
STATIC: dict[str, Any] = {"cache_implementation": "static"}
"""On CUDA, transformers compiles its passes with it, but not those of models that it loaded in nf4."""


def measure(context: Context) -> None:
    """Part 9. What is slowest to start is last, because the deadline may end the part."""
    spec, config = spec_of("7B", is_tiny=context.is_tiny), config_of("7B", is_tiny=context.is_tiny)
    decoder = random_decoder(spec, context.device, is_steady=True)
    model: Any = transformers_model(config, decoder)
    peers = Peers(context, "none", decoder)
    peers.compare("transformers eager", partial(_generate, model, peers.num_tokens))
    packed_decoder, packed_model = nf4_pair(context, decoder)
    packed = Peers(context, "nf4", packed_decoder)
    packed.compare("transformers eager", partial(_generate, packed_model, packed.num_tokens))
    del packed, packed_decoder, packed_model
    peers.compare("transformers static", partial(_generate, model, peers.num_tokens, **STATIC))
    try:
        _compiled_pass(context, static_model(decoder))
    except Exception as error:  # noqa: BLE001 - compilers raise anything
        context.say("compiled_pass", error=described(error))


def nf4_pair(context: Context, decoder: Decoder) -> tuple[Decoder, Any]:
    """Returns specgen's decoder and transformers' model, with layers packed from the numbers of a steady decoder."""
    spec, config = spec_of("7B", is_tiny=context.is_tiny), config_of("7B", is_tiny=context.is_tiny)
    own = random_decoder(spec, context.device, quant="nf4", is_steady=True)
    return own, quantize_layers(transformers_model(config, decoder))


class Peers:
    """Measures specgen on a decoder, and then other programs on the same weights.

    Args:
        context: Of the part.
        quant: Weight format of the decoder's layers; its draft has the same.
        decoder: A steady one.
    """

    def __init__(self, context: Context, quant: Quant, decoder: Decoder) -> None:
        self.num_tokens: int = context.pick(128, 8)
        self._context, self._quant = context, quant
        small = random_decoder(spec_of("0.5B", is_tiny=context.is_tiny), context.device, quant=quant)
        target, draft = static_model(decoder), static_model(with_nf4_head(small) if quant == "nf4" else small)
        loop = Loop(context, target, draft, self.num_tokens)
        plain = loop.run(target, NoDrafter(), 0, self.num_tokens)
        self._ids = plain.ids
        drafter = loop.oracle([*PROMPT, *plain.ids], ALPHA)
        drafted = loop.run(target, drafter, NUM_DRAFT_TOKENS, self.num_tokens)
        self._rates = {"plain": plain.rate, "drafted": drafted.rate}
        for runner, rate in self._rates.items():
            context.say("own", runner=runner, quant=quant, tokens_per_s=rate)

    def compare(self, peer: str, generate: Callable[[], list[int]]) -> None:
        """Reports a peer's speed, specgen's over it, and how many of its first tokens are the same.

        Args:
            peer: Its name.
            generate: Returns the new ids of a text of `num_tokens`.
        """
        timer = Timer(self._context.device, 1)
        try:
            generate()
            timer.wait()
            started = perf_counter()
            ids = generate()
            timer.wait()
            rate = self.num_tokens / (perf_counter() - started)
        except Exception as error:  # noqa: BLE001 - another program's
            self._context.say("peer", peer=peer, quant=self._quant, error=described(error))
            return
        pairs = enumerate(zip(ids, self._ids, strict=True))
        num_same = next((index for index, (found, own) in pairs if found != own), len(ids))
        over = {f"{runner}_over_it": own / rate for runner, own in self._rates.items()}
        self._context.say(
            "peer", peer=peer, quant=self._quant, tokens_per_s=rate, **over, num_same=num_same, num_tokens=len(ids)
        )


@torch.inference_mode()
def _generate(model: Any, num_tokens: int, **options: Any) -> list[int]:
    """Generates a text of fixed length; returns its new ids."""
    given = torch.tensor([PROMPT], device=model.device)
    limits = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens}
    output = model.generate(given, do_sample=False, **limits, **options)
    ids: list[int] = output[0, len(PROMPT) :].tolist()
    return ids


@torch.inference_mode()
def _compiled_pass(context: Context, model: StaticModel) -> None:
    """Times our one-row pass as torch.compile makes it, recorded: what fusing its small kernels would give."""
    device = context.device
    model.reserve(400)
    is_cuda = device.type == "cuda"
    compiled: Any = torch.compile(model.static_pass.run, dynamic=False, backend="inductor" if is_cuda else "eager")
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    positions = torch.full((1,), 256, dtype=torch.int64, device=device)
    timer = Timer(device, context.pick(20, 2))
    plain_ms = timer.replay_ms(lambda: model.static_pass.run(ids, positions, 512, 1))
    context.say("compiled_pass", plain_ms=plain_ms, ms=timer.replay_ms(lambda: compiled(ids, positions, 512, 1)))
