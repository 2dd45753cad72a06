"""All steps of `distill` with the target on a device beside the host: nothing meets across devices, and the same draft.

The fake device computes what the host does and draws its random numbers, so all results are equal bit for bit.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.progress import SILENT
from specgen.core.settings import ModelSettings
from specgen.distill import run
from specgen.distill.draft import SharedWeights, TrainableDraft, frequent_ids
from specgen.distill.initialization import fit_input
from specgen.distill.measurement import measure_acceptance
from specgen.distill.saving import draft_config, save_draft
from specgen.distill.settings import DistillRequest, DistillSettings, Kind, TrainSettings
from specgen.distill.target_texts import read_texts, save_texts
from specgen.distill.text_generation import BatchGenerator
from specgen.distill.training import Trainer
from specgen.loading.draft_head_folder import target_digest
from specgen.loading.placement import Placement
from specgen.loading.resolved_model import ResolvedModel
from specgen.models.decoder import Decoder
from tests.decoders import decoder_of
from tests.distill.targets import make_target
from tests.fake_cuda import FAKE, HOST, fake_cuda
from tests.loading.test_placement import pretend_gpus
from tests.toys import save_toy

PROMPTS = [[5, 9, 2, 40, 7], [3], [11, 12, 13, 14, 15, 16, 17, 18, 19], [8, 8], [60, 1, 4, 30], [7, 7, 7]]
TEMPERATURES = [0.0, 0.8, 0.0, 0.8, 0.0, 0.0]
ENDS = frozenset([1, 5, 9])
SETTINGS = DistillSettings(seed=1, train=TrainSettings(epochs=4, batch_tokens=60, learning_rate=3e-3))


def distill(folder: Path, device: torch.device, kind: Kind) -> dict[str, Any]:
    """Runs the steps of a distillation, training interrupted once. Returns their results, on the host."""
    folder.mkdir()
    model = make_target()
    target = decoder_of(model).to(device)
    generator = BatchGenerator(target, 61, ENDS)
    written = generator.generate(PROMPTS, TEMPERATURES, 20, seed=3)
    assert all(tensor.device == HOST for text in written for tensor in (text.ids, text.features))
    save_texts(folder / "texts.safetensors", written)
    texts = read_texts(folder / "texts.safetensors")
    ids = frequent_ids(texts, 40, 61, [1])

    def trainer() -> tuple[Trainer, float]:
        shared = SharedWeights(target.embedding, target.head.get_parameter("weight"), ids.to(target.device))
        draft = TrainableDraft(target, kind, [1, 2])
        explained = fit_input(draft, target, texts)
        return Trainer(draft, texts, shared, SETTINGS), explained

    ticks = iter(range(0, 10**9, 1000))
    first, explained = trainer()
    losses = list(islice(first.run(folder / "checkpoint", lambda: next(ticks)), 3))
    second, _ = trainer()
    losses += second.run(folder / "checkpoint")
    assert {value.device for value in second.parameters.values()} == {device}
    config = model.config.to_dict()
    about = draft_config(config, second.draft, "toy", target_digest(target.embedding, config), len(ids))
    save_draft(folder / "made", second.draft, ids, about)
    return {
        "texts": [text.ids.tolist() for text in written],
        "features": [text.features.tolist() for text in written],
        "explained": explained,
        "losses": losses,
        "acceptance": measure_acceptance(second.draft, texts, second.shared),
        "weights": (folder / "made" / "model.safetensors").read_bytes(),
        "config": about,
    }


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["features", "layers"])
def test_every_step_runs_on_a_device_and_makes_the_same_draft(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = distill(tmp_path / "host", HOST, kind)
    with fake_cuda(monkeypatch):
        found = distill(tmp_path / "device", FAKE, kind)

    for name, value in expected.items():
        assert found[name] == value, name


def test_cuda_is_prepared_before_the_target_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, cuDNN's attention builds a plan for each length of a text."""
    done: list[str] = []
    model, target = make_target(), save_toy(tmp_path / "target")

    def load(_: ResolvedModel, placement: Placement) -> tuple[Decoder, list[str]]:
        done.append("loaded")
        return decoder_of(model).to(torch.device(placement.device)), []

    pretend_gpus(monkeypatch, 2**30)
    monkeypatch.setattr(run, "prepare_cuda", lambda: done.append("prepared"))
    monkeypatch.setattr(run, "load_own_decoder", load)  # it reads layers in other threads, where the device is unknown
    request = DistillRequest(ModelSettings(str(target), device="cuda"), SETTINGS, tmp_path / "draft", ())
    with fake_cuda(monkeypatch):
        made = run.Distillation(request, SILENT)

        assert made._decoder.device == FAKE
    assert done == ["prepared", "loaded"]
