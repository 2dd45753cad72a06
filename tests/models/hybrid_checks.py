"""Checks of models with running states: their text, its distribution, and their states after rejected drafts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from specgen.core.settings import SamplingSettings
from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.enumeration import every_outcome
from specgen.models.transformers_model import TransformersModel
from tests.fakes import ScriptedDrafter, always_wrong, assert_close, ids_of, rounds_of, run_events, sampler
from tests.generate_oracle import generated_ids
from tests.hybrids import HYBRIDS, hybrid_model

PROMPT = [1, 17, 40, 17, 40, 9, 88, 3]
MAIN = ["Lfm2", "Qwen3_5", "FalconH1"]
"""One architecture for each kind of rollback: cropped convolutions, a delta rule, both kinds of states in a layer."""
RECURRENT = [kind for kind in HYBRIDS if not kind.startswith("Lfm2")]


def make(kind: str, vocab_size: int = 96, seed: int = 0) -> TransformersModel:
    return TransformersModel(hybrid_model(kind, vocab_size, seed), vocab_size)


def fresh_logits(kind: str, ids: Sequence[int], num_last: int = 1) -> Tensor:
    """Returns the logits of transformers' code, without a cache."""
    with torch.inference_mode():
        logits: Tensor = hybrid_model(kind)(torch.tensor([list(ids)]), use_cache=False).logits[0, -num_last:].float()
    return logits


@cache
def reference(kind: str, num_tokens: int) -> tuple[int, ...]:
    """Returns transformers' own greedy text."""
    return tuple(generated_ids(hybrid_model(kind), PROMPT, num_tokens))


def drafter_of(name: str, kind: str, answer: Sequence[int]) -> Drafter:
    if name == "lookup":
        return LookupDrafter()
    if name in ("self", "model"):
        return ModelDrafter(make(kind, seed=0 if name == "self" else 1), 96, sampler())
    return NoDrafter() if name == "none" else always_wrong(answer, len(PROMPT), 96)


def check_greedy(kind: str, name: str, num_tokens: int = 20, num_draft_tokens: int = 3) -> None:
    answer = reference(kind, num_tokens)
    drafter = drafter_of(name, kind, answer)
    events = run_events(make(kind), drafter, PROMPT, max_new_tokens=num_tokens, num_draft_tokens=num_draft_tokens)
    assert tuple(ids_of(events)) == answer


SAMPLED = SamplingSettings(temperature=1.0)
VOCAB = 3
LAW_PROMPT = [0, 1, 0]
NUM_LAW_TOKENS = 3


@cache
def target_distribution(kind: str) -> dict[tuple[int, ...], float]:
    """Computes the distribution of the next tokens by passes without a cache."""
    model, found = hybrid_model(kind, VOCAB), {(): 1.0}
    for _ in range(NUM_LAW_TOKENS):
        texts = list(found)
        with torch.inference_mode():
            logits = model(torch.tensor([[*LAW_PROMPT, *text] for text in texts]), use_cache=False).logits[:, -1]
        rows = logits.double().softmax(-1).tolist()
        found = {
            (*text, token): found[text] * probability
            for text, row in zip(texts, rows, strict=True)
            for token, probability in enumerate(row)
        }
    return found


def check_law(kind: str) -> None:
    target, found = make(kind, VOCAB), defaultdict[tuple[int, ...], float](float)
    accepted = set()
    drafter = ScriptedDrafter(lambda ids, limit: [(ids[-1] + step) % VOCAB for step in range(1, limit + 1)])
    options = {"max_new_tokens": NUM_LAW_TOKENS, "num_draft_tokens": 2, "sampling": SAMPLED}

    def run(randomness: object) -> list[object]:
        target.rewind(0)
        return run_events(target, drafter, LAW_PROMPT, randomness=randomness, **options)

    for weight, events in every_outcome(run):
        found[tuple(ids_of(events))] += weight
        accepted |= {(len(round_.draft_ids), round_.num_accepted) for round_ in rounds_of(events)}
    assert accepted >= {(2, 0), (2, 1), (2, 2)}, "a draft must be rejected at every position"
    expected = target_distribution(kind)
    assert found.keys() == expected.keys()
    assert max(abs(found[text] - expected[text]) for text in expected) < 1e-4


def states_of(model: TransformersModel) -> list[Tensor]:
    """Copies all running states, those of convolutions up to the inputs that the next pass reads."""
    states = []
    for layer in model.states._layers:
        for index, state in layer.conv_states.items():
            if state is not None:
                states.append(state[..., 1 - layer.conv_kernel_size[index] :].clone())
        states += [state.clone() for state in layer.recurrent_states.values() if state is not None]
    return states


def rejected(kind: str, draft: list[int], num_accepted: int) -> TransformersModel:
    """Returns a model after a draft of which some tokens were accepted."""
    model = make(kind)
    model.feed(PROMPT[:-1])
    model.logits(PROMPT, len(draft) + 1, tail=torch.tensor(draft))
    model.rewind(len(PROMPT) + num_accepted)
    return model


def check_states(kind: str) -> None:
    for num_accepted in range(4):
        kept, rest = [5, 6, 7, 8][:num_accepted], 4 - num_accepted
        one = rejected(kind, kept + [20] * rest, num_accepted)
        other = rejected(kind, kept + [70] * rest, num_accepted)
        assert one.length == other.length
        for pair in zip(states_of(one), states_of(other), strict=True):
            # Experts compute the rows of their tokens together, so rejected tokens change the rounding of others.
            assert torch.equal(*pair) or (kind == "Lfm2Moe" and assert_close(*pair) is None), "a token left a trace"
        if one.is_recurrent:
            never = make(kind)
            never.feed(PROMPT[:-1])
            assert one.length == len(PROMPT) - 1
            assert all(torch.equal(*pair) for pair in zip(states_of(one), states_of(never), strict=True))
        ids = [*PROMPT, *kept, 33]
        assert_close(one.logits(ids, 1), fresh_logits(kind, ids))
