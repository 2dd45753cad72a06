"""Training: the loss and its gradient, a beginning by least squares, and a run that goes on where it was killed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from specgen.distill.draft import Draft
from specgen.distill.loss import CHUNK, head_loss
from specgen.distill.settings import TrainSettings
from specgen.distill.training import Shared, Trainer, batches, frequent_ids, share
from tests.distill.targets import make_target, make_text

MODEL = make_target()
TEXTS = [make_text(MODEL, 10 + seed % 7, 3, seed) for seed in range(24)]
SETTINGS = TrainSettings(epochs=3, batch_tokens=60, learning_rate=3e-3)


def shared(num_ids: int = 40) -> Shared:
    ids = frequent_ids(TEXTS, num_ids, 61, [1])
    return share(MODEL.get_input_embeddings().weight, MODEL.lm_head.weight, ids)


def trainer(path: Path, clock: object = None) -> Trainer:
    options = {} if clock is None else {"clock": clock}
    return Trainer(Draft(MODEL, "features", [2]), TEXTS, shared(), SETTINGS, seed=1, checkpoint=path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("hard_share", [0.0, 0.3, 1.0])
def test_the_head_loss_and_its_gradient_are_those_of_the_formula(hard_share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    num_rows = CHUNK + 7
    features, outputs = (torch.randn(num_rows, 8, generator=generator) for _ in range(2))
    head = torch.randn(30, 8, generator=generator)
    ours, plain = outputs.clone().requires_grad_(), outputs.clone().requires_grad_()

    loss = head_loss(ours, features, head, hard_share)
    (3 * loss).backward()

    teacher = features @ head.T
    wanted = (1 - hard_share) * teacher.softmax(-1) + hard_share * functional.one_hot(teacher.argmax(-1), 30)
    expected = -(wanted * (plain @ head.T).log_softmax(-1)).sum(-1).mean()
    (3 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert ours.grad is not None
    assert plain.grad is not None
    assert torch.allclose(ours.grad, plain.grad, atol=1e-7)


def test_frequent_tokens_are_counted_in_answers_and_ends_are_always_there() -> None:
    ids = frequent_ids(TEXTS, 5, 61, [1])

    assert len(ids) == 5
    assert ids.tolist() == sorted(ids.tolist())
    assert 1 in ids
    counts = torch.bincount(torch.cat([text.ids[3:] for text in TEXTS]), minlength=61)
    assert int(counts.argmax()) in ids
    assert frequent_ids(TEXTS, 0, 61, [1]).tolist() == list(range(61))


def test_batches_hold_every_text_once_within_their_size() -> None:
    made = batches(TEXTS, 60, "seed")

    assert sorted(index for batch in made for index in batch) == list(range(len(TEXTS)))
    assert all(len(batch) == 1 or len(batch) * max(len(TEXTS[i].ids) for i in batch) <= 60 for batch in made)
    assert batches(TEXTS, 60, "seed") == made != batches(TEXTS, 60, "other")


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    losses = list(trainer(tmp_path / "checkpoint").run())

    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_a_stopped_training_goes_on_to_the_same_draft_bit_for_bit(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    losses = list(whole.run())
    ticks = iter(range(0, 10**9, 1000))
    stopped = trainer(tmp_path / "stopped", lambda: next(ticks))  # a checkpoint after every step
    first = list(islice(stopped.run(), 6))

    resumed = trainer(tmp_path / "stopped")
    rest = list(resumed.run())

    # The generator stood at its sixth yield when it was dropped: six steps are in the file.
    assert [*first, *rest] == losses
    for name, value in whole.parameters.items():
        assert torch.equal(value, resumed.parameters[name]), name


def test_only_tokens_that_can_be_drafted_are_trained_on(tmp_path: Path) -> None:
    draft = Draft(MODEL, "features", [2])
    few = shared(2)
    made = Trainer(
        draft, TEXTS, few, TrainSettings(feature_weight=0.0, batch_tokens=60), seed=1, checkpoint=tmp_path / "c"
    )
    from specgen.distill.training import batch_of

    without = [text for text in TEXTS if not any(int(few.row_of[token]) >= 0 for token in text.ids[3:])]

    loss = made.loss(batch_of(without, torch.device("cpu")))

    assert without
    assert loss.item() == 0.0
