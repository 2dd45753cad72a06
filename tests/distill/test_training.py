"""Training: the loss and its gradient, and a run that continues where it stopped."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from specgen.distill.draft import SharedWeights, TrainableDraft, frequent_ids
from specgen.distill.measurement import measure_acceptance
from specgen.distill.settings import DistillSettings, Kind, TrainSettings
from specgen.distill.target_texts import batch_indices, pad_batch
from specgen.distill.training import CHUNK, Trainer, head_loss
from tests.decoders import decoder_of
from tests.distill.targets import make_target, make_text
from tests.fakes import assert_close

MODEL = make_target()
TEXTS = [make_text(MODEL, 10 + seed % 7, 3, seed) for seed in range(24)]
SETTINGS = DistillSettings(seed=1, train=TrainSettings(epochs=3, batch_tokens=60, learning_rate=3e-3))


def shared(num_ids: int = 40, dtype: torch.dtype = torch.float32) -> SharedWeights:
    ids = frequent_ids(TEXTS, num_ids, 61, [1])
    return SharedWeights(MODEL.get_input_embeddings().weight.to(dtype), MODEL.lm_head.weight.to(dtype), ids)


def trainer(kind: Kind = "features", dtype: torch.dtype = torch.float32) -> Trainer:
    target = decoder_of(copy.deepcopy(MODEL).to(dtype))
    return Trainer(TrainableDraft(target, kind, [2]), TEXTS, shared(dtype=dtype), SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hard_share", [0.0, 0.3, 1.0])
def test_the_head_loss_and_its_gradient_are_those_of_the_formula(hard_share: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    num_rows = CHUNK + 7
    # Inputs that bfloat16 holds exactly, so that only its logits are rounded.
    features, outputs, head = (
        torch.randn(rows, 8, generator=generator).bfloat16().float() for rows in (num_rows, num_rows, 30)
    )
    weights = SharedWeights(head.to(dtype), head.to(dtype), torch.arange(30))
    ours, plain = outputs.clone().requires_grad_(), outputs.clone().requires_grad_()

    loss = head_loss(ours, features, weights, hard_share)
    (3 * loss).backward()

    teacher = features @ head.T
    expected_probs = (1 - hard_share) * teacher.softmax(-1) + hard_share * functional.one_hot(teacher.argmax(-1), 30)
    expected = -(expected_probs * (plain @ head.T).log_softmax(-1)).sum(-1).mean()
    (3 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5 if dtype == torch.float32 else 1e-2)
    assert ours.grad is not None
    assert plain.grad is not None
    if dtype == torch.float32:
        assert_close(ours.grad, plain.grad)
    else:
        # A row whose two best tokens tie in bfloat16 may follow the other one.
        similarity = functional.cosine_similarity(ours.grad, plain.grad, dim=-1)
        assert float((similarity > 0.99).float().mean()) > 0.97


def test_frequent_tokens_are_those_of_the_answers_and_the_end_tokens() -> None:
    ids = frequent_ids(TEXTS, 5, 61, [1])

    assert len(ids) == 5
    assert ids.tolist() == sorted(ids.tolist())
    assert 1 in ids
    counts = torch.bincount(torch.cat([text.ids[3:] for text in TEXTS]), minlength=61)
    assert int(counts.argmax()) in ids
    assert frequent_ids(TEXTS, 0, 61, [1]).tolist() == list(range(61))


def test_batches_contain_every_text_once_within_their_size() -> None:
    made = batch_indices(TEXTS, 60, "seed")

    assert sorted(index for batch in made for index in batch) == list(range(len(TEXTS)))
    assert all(len(batch) == 1 or len(batch) * max(len(TEXTS[i].ids) for i in batch) <= 60 for batch in made)
    assert batch_indices(TEXTS, 60, "seed") == made != batch_indices(TEXTS, 60, "other")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draft_is_multiplied_in_the_type_of_its_target(dtype: torch.dtype) -> None:
    made, seen = trainer(dtype=dtype), []
    assert made.draft.fc is not None
    made.draft.fc.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))

    made.loss(pad_batch(TEXTS, torch.device("cpu")))
    measure_acceptance(made.draft, TEXTS[:1], made.shared)

    assert set(seen) == {dtype}


@pytest.mark.parametrize("kind", ["features", "layers"])
@pytest.mark.fast("layers")
def test_training_lowers_the_loss_in_bfloat16_as_in_float32(kind: Kind, tmp_path: Path) -> None:
    losses = list(trainer(kind).run(tmp_path / "checkpoint"))
    low = trainer(kind, torch.bfloat16)
    low_losses = list(low.run(tmp_path / "low"))

    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert low_losses == pytest.approx(losses, rel=0.05)
    assert {value.dtype for value in low.parameters.values()} == {torch.float32}


def test_a_stopped_training_continues_to_the_same_draft_bit_for_bit(tmp_path: Path) -> None:
    whole = trainer()
    losses = list(whole.run(tmp_path / "whole"))
    ticks = iter(range(0, 10**9, 1000))
    # The clock makes a checkpoint after every step.
    first = list(islice(trainer().run(tmp_path / "stopped", lambda: next(ticks)), 6))

    resumed = trainer()
    rest = list(resumed.run(tmp_path / "stopped"))

    # The generator was dropped at its sixth yield, so the file contains six steps.
    assert [*first, *rest] == losses
    for name, value in whole.parameters.items():
        assert torch.equal(value, resumed.parameters[name]), name


def test_only_tokens_that_can_be_drafted_are_trained_on() -> None:
    draft = TrainableDraft(decoder_of(MODEL), "features", [2])
    few = shared(2)
    settings = DistillSettings(train=TrainSettings(feature_weight=0.0, batch_tokens=60))
    made = Trainer(draft, TEXTS, few, settings)
    without = [text for text in TEXTS if not any(int(few.row_of[token]) >= 0 for token in text.ids[3:])]

    loss = made.loss(pad_batch(without, torch.device("cpu")))

    assert without
    assert loss.item() == 0.0
