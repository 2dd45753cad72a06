"""The linear fit that initializes a draft, compared with least squares from torch."""

from __future__ import annotations

import pytest
import torch

from specgen.distill.draft import TrainableDraft
from specgen.distill.initialization import fit_input
from tests.decoders import decoder_of
from tests.distill.targets import make_target, make_text
from tests.fakes import assert_close

MODEL = make_target()
DECODER = decoder_of(MODEL)
TEXTS = [make_text(MODEL, 10 + seed % 7, 3, seed) for seed in range(24)]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_fit_is_the_least_squares_solution(layer: int) -> None:
    draft = TrainableDraft(DECODER, "features", [layer])
    embedding = MODEL.get_input_embeddings().weight

    explained = fit_input(draft, DECODER, TEXTS)

    given = torch.cat([torch.cat([embedding[t.ids[1:-1]], t.features[:-1]], dim=1) for t in TEXTS]).double()
    inputs = [MODEL.model(t.ids[None], output_hidden_states=True).hidden_states[layer][0, 1:-1] for t in TEXTS]
    outputs = torch.cat(inputs).double()
    ridge = 1e-3 * (given.T @ given).diagonal().mean()
    augmented = torch.cat([given, ridge.sqrt() * torch.eye(given.shape[1])])
    padded = torch.cat([outputs, torch.zeros(given.shape[1], outputs.shape[1])])
    expected = torch.linalg.lstsq(augmented.double(), padded.double()).solution.T
    assert draft.fc is not None
    assert_close(draft.fc.weight.detach().double(), expected)
    rest = (outputs - given @ expected.T).pow(2).sum()
    assert explained == pytest.approx(float(1 - rest / (outputs - outputs.mean(0)).pow(2).sum()), abs=1e-3)


def test_the_input_of_the_first_layer_is_the_embedding_and_fits_completely() -> None:
    assert fit_input(TrainableDraft(DECODER, "features", [0]), DECODER, TEXTS) > 0.99


def test_only_a_sample_of_the_texts_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from specgen.distill import initialization

    read: list[int] = []
    real = initialization._layer_inputs

    def counted(*arguments: object) -> torch.Tensor:
        read.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(initialization, "_layer_inputs", counted)

    fit_input(TrainableDraft(DECODER, "features", [2]), DECODER, TEXTS, max_tokens=60)

    assert 1 < len(read) < len(TEXTS) / 2


def test_a_draft_without_features_is_unchanged() -> None:
    draft = TrainableDraft(DECODER, "layers", [0, 2])
    before = {name: value.clone() for name, value in draft.state_dict().items()}

    assert fit_input(draft, DECODER, TEXTS) == 0.0

    assert all(torch.equal(value, before[name]) for name, value in draft.state_dict().items())
