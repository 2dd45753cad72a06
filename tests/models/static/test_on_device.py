"""Rounds on a device beside the host: nothing meets across devices, one read waits, and no upload does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch

from specgen.core.events import Notice, Round
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine import target_pass
from specgen.engine.clock import Clock, EventClock
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.drafters.ahead import AheadChoice, AheadTiming
from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.sampling import Sampler
from specgen.models.decoder_model import DecoderModel
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from tests.decoders import decoder_of
from tests.draft_heads import open_draft, tiny_draft
from tests.fake_cuda import FAKE, FakeCuda, fake_cuda
from tests.fakes import GREEDY, ids_of, rounds_of, tiny_model
from tests.models.static.builders import UntilUnsure
from tests.models.static.recorder import TraceRecorder
from tests.models.test_decoder import built
from tests.profiles import thorough_except

PROMPT = [1, 17, 40, 17, 40, 9, 88, 3]
NUM_TOKENS = 20
VOCAB_SIZE = 96
SAMPLED = SamplingSettings(temperature=0.9, seed=5)
SAMPLINGS = {
    "greedy": GREEDY,
    "greedy-penalty": SamplingSettings(temperature=0.0, repetition_penalty=1.3),
    "sampled": SAMPLED,
    "processed": SamplingSettings(temperature=0.9, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=5),
    "same-text": SamplingSettings(temperature=0.9, seed=5, same_text=True),
}
Make = Callable[[Any], Any]


def static(decoder: Any) -> StaticModel:
    return StaticModel(DecoderPass(decoder), VOCAB_SIZE, TraceRecorder())


def plain(decoder: Any) -> DecoderModel:
    return DecoderModel(decoder, VOCAB_SIZE)


def run(
    target: Any,
    make_drafter: Callable[[Sampler], Drafter],
    sampling: SamplingSettings,
    device: FakeCuda,
    draft_length: LengthPolicy | None = None,
    clock: Clock = perf_counter,
) -> Any:
    """Decodes; returns the events and, for each round, what it read and which of its uploads wait.

    Rounds that record are left out: the recorder of the tests copies what it restores.
    """
    own = Sampler.seeded(sampling, target.device, VOCAB_SIZE)
    events, waits = [], []
    options = DecodeOptions(DecodeSettings(NUM_TOKENS, 4), draft_length=draft_length, clock=clock)
    for event in decode(target, make_drafter(own), PROMPT, own, options):
        events.append(event)
        if isinstance(event, Round) and not event.is_warmup:
            waits.append((list(device.reads), list(device.pageable)))
        device.reads.clear()
        device.pageable.clear()
    assert not [event for event in events if isinstance(event, Notice)]
    return events, waits


def head_drafter(folder: Path, target: Any, own: Sampler) -> ModelDrafter:
    head = open_draft(folder, target)
    return ModelDrafter(head, VOCAB_SIZE, own, columns=head.columns)


# What is read does not depend on the processors between logits and draw: the sampling with all of them stands for the
# others. Noise by position differs in what the target draws, not in the drafter.
@pytest.mark.parametrize(
    ("make", "name", "drafts"),
    thorough_except(
        [
            *((static, "greedy", "model"), (static, "processed", "head"), (static, "same-text", "model")),
            (plain, "processed", "model"),
        ],
        [
            *((static, name, "model") for name in SAMPLINGS),
            *itertools.product((static,), ("greedy", "processed"), ("head", "lookup", "none")),
            *((plain, "processed", drafts) for drafts in ("model", "head")),
        ],
    ),
)
@pytest.mark.fast("static-same-text-model")
def test_a_round_reads_the_device_once(name: str, make: Make, drafts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events time the round without a read, and neither draft nor pass includes the read."""
    # One layer: a second one does the same on the same device, and every operation here costs ten times as much.
    models = built("llama", num_hidden_layers=1), tiny_model("llama", 1, num_hidden_layers=1)
    folder = tiny_draft("head subset", models[0], "one-layer-llama")
    with fake_cuda(monkeypatch) as device:
        target, draft = (make(decoder_of(model).to(FAKE)) for model in models)
        drafters: dict[str, Callable[[Sampler], Drafter]] = {
            "model": lambda own: ModelDrafter(draft, VOCAB_SIZE, own),
            "head": lambda own: head_drafter(folder, target, own),
            "lookup": lambda own: LookupDrafter(),
            "none": lambda own: NoDrafter(),
        }
        events, waits = run(target, drafters[drafts], SAMPLINGS[name], device, clock=EventClock(FAKE))

    assert len(waits) >= 3
    timed = [event for event in rounds_of(events) if not event.is_warmup]
    assert [(event.draft_seconds, event.verify_seconds) for event in timed] == [(0, 0)] * len(waits)
    assert [len(reads) for reads, _ in waits] == [1] * len(waits)
    assert [uploads for _, uploads in waits] == [[]] * len(waits)


def test_a_plain_round_records_three_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its beginning, the end of its pass and the copy of its result: the device waits while the host records them."""
    with fake_cuda(monkeypatch) as device:
        target = static(decoder_of(built("llama", num_hidden_layers=1)).to(FAKE))
        own = Sampler.seeded(GREEDY, target.device, VOCAB_SIZE)
        options = DecodeOptions(DecodeSettings(NUM_TOKENS, 0), clock=EventClock(FAKE))
        counts = []
        for event in decode(target, NoDrafter(), PROMPT, own, options):
            counts += [device.num_events] if isinstance(event, Round) else []

    assert {last - first for first, last in itertools.pairwise(counts)} == {3}


@pytest.mark.parametrize("name", thorough_except(["processed"], SAMPLINGS))
@pytest.mark.thorough
def test_a_policy_that_reads_confidences_adds_one_read_per_drafted_token(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = built("llama"), tiny_model("llama", 1)
    policy = CostAwareLength(CostTable(dict.fromkeys(range(1, 9), 1.0)), DraftCost(0.01))
    with fake_cuda(monkeypatch) as device:
        target, draft = (static(decoder_of(model).to(FAKE)) for model in models)
        events, waits = run(
            target, lambda own: ModelDrafter(draft, VOCAB_SIZE, own), SAMPLINGS[name], device, draft_length=policy
        )

    drafted = [len(event.draft_ids) + event.num_cut for event in rounds_of(events) if not event.is_warmup]
    assert max(drafted) >= 1
    assert [len(reads) for reads, _ in waits] == [1 + count for count in drafted]


@pytest.mark.parametrize("drafts", thorough_except(["model"], ["model", "head"]))
@pytest.mark.thorough
def test_drafting_ahead_changes_no_draft_and_adds_no_read(drafts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = built("llama", num_hidden_layers=1), tiny_model("llama", 1, num_hidden_layers=1)
    folder = tiny_draft("head subset", models[0], "one-layer-llama")
    found, counts, num_steps = [], [], []
    for is_ahead in (False, True):
        with fake_cuda(monkeypatch) as device:
            target, draft = (static(decoder_of(model).to(FAKE)) for model in models)
            own = Sampler.seeded(GREEDY, target.device, VOCAB_SIZE)
            drafter = head_drafter(folder, target, own) if drafts == "head" else ModelDrafter(draft, VOCAB_SIZE, own)
            drafter.drafts_ahead = is_ahead
            events, waits = run(target, lambda _: drafter, GREEDY, device, draft_length=UntilUnsure())  # noqa: B023
        found.append([(event.draft_ids, event.token_ids) for event in rounds_of(events)])
        drafted = [len(event.draft_ids) + event.num_cut for event in rounds_of(events) if not event.is_warmup]
        counts.append([len(reads) for reads, _ in waits])
        num_steps.append(drafter.model.num_forwards)
        assert counts[-1] == [1 + count for count in drafted][-len(waits) :]
        assert [uploads for _, uploads in waits] == [[]] * len(waits)

    assert found[0] == found[1]
    assert {len(draft_ids) for draft_ids, _ in found[0]} >= {1, 3}
    assert num_steps[1] > num_steps[0]


def test_both_ways_of_drafting_are_measured_and_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    models = built("llama", num_hidden_layers=1), tiny_model("llama", 1, num_hidden_layers=1)
    observed: list[AheadTiming] = []
    monkeypatch.setattr(AheadChoice, "observe", lambda _, timing: observed.append(timing))
    monkeypatch.setattr(AheadChoice, "is_ahead", property(lambda _: len(observed) % 2 == 1))
    with fake_cuda(monkeypatch) as device:
        target, draft = (static(decoder_of(model).to(FAKE)) for model in models)
        drafter = ModelDrafter(draft, VOCAB_SIZE, Sampler.seeded(GREEDY, target.device, VOCAB_SIZE))
        events, _ = run(target, lambda _: drafter, GREEDY, device, draft_length=UntilUnsure())

    drafted = [len(event.draft_ids) + event.num_cut for event in rounds_of(events)]
    kept = [count for count in drafted if count][-len(observed) :]
    assert [timing.num_kept for timing in observed] == kept
    assert {timing.is_ahead for timing in observed} == {False, True}
    assert all(timing.num_started == timing.num_kept for timing in observed if not timing.is_ahead)
    assert any(timing.num_started == timing.num_kept + 1 for timing in observed if timing.is_ahead)


@pytest.mark.parametrize("name", thorough_except(["processed", "same-text"], SAMPLINGS))
@pytest.mark.fast("same-text")
def test_the_text_is_that_of_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake device draws the host's random numbers, so this compares everything else."""
    target, draft = built("llama"), tiny_model("llama", 1)
    sampling = SAMPLINGS[name]
    own = Sampler.seeded(sampling, torch.device("cpu"), VOCAB_SIZE)
    with monkeypatch.context() as on_host:
        # A device draws for all rows at once, the host as it needs them.
        on_host.setattr(target_pass, "is_on_host", lambda tensor: False)
        expected = ids_of(
            list(
                decode(
                    static(decoder_of(target)),
                    ModelDrafter(static(decoder_of(draft)), VOCAB_SIZE, own),
                    PROMPT,
                    own,
                    DecodeOptions(DecodeSettings(NUM_TOKENS, 4)),
                )
            )
        )
    with fake_cuda(monkeypatch) as device:
        on_device = static(decoder_of(target).to(FAKE)), static(decoder_of(draft).to(FAKE))
        events, _ = run(on_device[0], lambda own: ModelDrafter(on_device[1], VOCAB_SIZE, own), sampling, device)

    assert ids_of(events) == expected


@pytest.mark.parametrize("name", thorough_except(["processed"], ["processed", "same-text"]))
@pytest.mark.parametrize("places", [("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.thorough
def test_target_and_draft_may_be_on_two_devices(
    name: str, places: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = built("llama"), tiny_model("llama", 1)
    with fake_cuda(monkeypatch) as device:
        target, draft = (plain(decoder_of(model).to(place)) for model, place in zip(models, places, strict=True))
        events, _ = run(target, lambda own: ModelDrafter(draft, VOCAB_SIZE, own), SAMPLINGS[name], device)

    assert len(ids_of(events)) == NUM_TOKENS
