"""The unrolled draft computes the same as an independent, slow draft that drafts step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.errors import LoadError
from specgen.distill.draft import TrainableDraft, UnrolledSlots
from specgen.distill.initialization import choose_layers
from specgen.distill.saving import draft_config, publish_draft, save_draft
from specgen.distill.settings import DistillSettings
from specgen.loading.config_check import read_config
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.draft_head_folder import check_draft_head, target_digest
from specgen.loading.resolved_model import ModelConfig
from specgen.models.kv_slots import SliceSlots
from tests.decoders import decoder_model, decoder_of
from tests.distill.targets import FAMILIES, make_target, make_text
from tests.draft_heads import SlowDraft, open_draft
from tests.fakes import assert_close
from tests.profiles import thorough_except

NUM_STEPS = 4
LENGTH = 12


def trained_like(model: Any, kind: str, num_layers: int) -> TrainableDraft:
    """Returns a draft whose weights all differ from their initial values, rounded to the type that is saved."""
    draft = TrainableDraft(decoder_of(model), kind, list(range(num_layers)))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            parameter.copy_(parameter.bfloat16().float())
    return draft


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["features", "layers"])
@pytest.mark.parametrize(("family", "num_layers"), [*((family, 2) for family in FAMILIES), ("Llama", 1)])
def test_unrolled_steps_are_those_of_the_saved_draft(tmp_path: Path, family: str, kind: str, num_layers: int) -> None:
    model = make_target(family)
    draft = trained_like(model, kind, num_layers)
    config = model.config.to_dict()
    digest = target_digest(model.get_input_embeddings().weight, config)
    ids = torch.arange(61)
    save_draft(tmp_path / "d", draft, ids, draft_config(config, draft, "toy", digest, 61))
    slow = SlowDraft(tmp_path / "d", model)
    text = make_text(model, LENGTH + 1, 2, seed=4)

    tokens, features = text.ids[:LENGTH], text.features
    outputs = draft.unroll(model.get_input_embeddings().weight[tokens][None], features[None], NUM_STEPS)

    found, expected = [], []
    for step, output in enumerate(outputs):
        for index in range(step + 1, LENGTH):
            known = tokens[: index - step + 1].tolist()
            tail = tokens[index - step + 1 : index + 1].tolist()
            expected.append(slow.logits(known, tail)[0])
            found.append(model.lm_head(output[0, index]))
    assert_close(torch.stack(found).detach(), torch.stack(expected))


@pytest.mark.parametrize("num_layers", thorough_except([2], [1, 2]))
@pytest.mark.parametrize("kind", ["features", "layers"])
@pytest.mark.parametrize("family", thorough_except(["Llama", "Mistral"], FAMILIES))
@pytest.mark.fast("Llama-layers-2", "Llama-features-2")
def test_unrolled_steps_are_those_of_inference(tmp_path: Path, family: str, kind: str, num_layers: int) -> None:
    """What is trained is what `DraftHeadModel` computes: the same layers, with other slots."""
    model = make_target(family)
    draft = trained_like(model, kind, num_layers)
    config = model.config.to_dict()
    digest = target_digest(model.get_input_embeddings().weight, config)
    save_draft(tmp_path / "d", draft, torch.arange(61), draft_config(config, draft, "toy", digest, 61))
    text = make_text(model, LENGTH + 1, 2, seed=4)
    tokens = text.ids[:LENGTH]

    with torch.no_grad():
        outputs = draft.unroll(model.get_input_embeddings().weight[tokens][None], text.features[None], NUM_STEPS)

    for step, output in enumerate(outputs):
        target = decoder_model(model, 61)
        inference = open_draft(tmp_path / "d", target)
        found, expected = [], []
        for index in range(step + 1, LENGTH):
            known = tokens[: index - step + 1].tolist()
            target.feed(known[:-1])
            found.append(inference.logits(known, 1, tokens[index - step + 1 : index + 1])[0])
            inference.rewind(len(known) - 1)
            expected.append(model.lm_head(output[0, index]))
        assert_close(torch.stack(found), torch.stack(expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_draft_passes_the_checks_of_loading(tmp_path: Path, family: str) -> None:
    model = make_target(family)
    draft = trained_like(model, "features", 1)
    config = draft_config(model.config.to_dict(), draft, "toy", "0" * 64, 17)

    save_draft(tmp_path / "made", draft, torch.arange(17), config)
    (tmp_path / "d").mkdir()
    num_bytes = publish_draft(tmp_path / "made", tmp_path / "d", "card")

    config = check_draft_head(read_config(tmp_path / "d"), tmp_path / "d")
    head = config.draft_head
    assert head is not None
    assert (tmp_path / "d" / "README.md").read_text() == "card"
    assert (head.kind, len(head.spec.layers), head.num_draft_ids) == ("features", 1, 17)
    assert config.num_weight_bytes <= num_bytes < 2 * config.num_parameters + 5000
    assert (tmp_path / "d" / "README.md").read_text() == "card"


def test_the_scale_of_attention_is_that_of_the_target() -> None:
    """With one step, unrolling computes the target's own layers; Granite's scale is not the usual one."""
    target = decoder_of(make_target("Granite", attention_multiplier=0.9))
    draft = TrainableDraft(target, "layers", [0, 1, 2])
    embedded = torch.randn(1, LENGTH, target.spec.hidden_size, generator=torch.Generator().manual_seed(2))

    output = draft.unroll(embedded, embedded, 1)[0]

    slots = SliceSlots(target.spec, target.embedding)
    expected = target.norm(target.run_layers(embedded[0], slots.begin(0, LENGTH), slots))
    assert target.spec.attention_scale == 0.9 != target.spec.head_size**-0.5
    assert_close(output[0].detach(), expected)


def test_later_steps_use_the_scale_of_the_target() -> None:
    """A scale s on given queries is the usual scale on queries times s * sqrt(size)."""
    size, generator = 8, torch.Generator().manual_seed(3)
    steps = [torch.randn(3, 1, LENGTH, 2, size, generator=generator) for _ in range(3)]
    scaled, usual = UnrolledSlots(1, 0.9), UnrolledSlots(1, size**-0.5)

    for queries, keys, values in steps:
        found = scaled.attend(0, queries, keys, values)
        assert_close(found, usual.attend(0, queries * 0.9 * size**0.5, keys, values))


FULL = {"sliding_window": 4, "layer_types": ["full_attention"] * 3}


@pytest.mark.parametrize(("family", "changes"), [("Granite", {"logits_scaling": 4.0}), ("Gemma2", FULL)])
def test_a_target_that_scales_embeddings_or_logits_is_refused(family: str, changes: dict[str, Any]) -> None:
    """Training reads embeddings and head as they are."""
    config = make_target(family, **changes).config.to_dict()
    spec = decoder_spec(config)
    assert (spec.embedding_scale, spec.logits_divisor) != (1.0, 1.0)
    checked = ModelConfig(config["model_type"], 61, 128, None, "float32", 1, 1, decoder=spec)

    with pytest.raises(LoadError, match="architecture"):
        choose_layers(checked, "toy", DistillSettings())


def test_the_target_has_no_trained_parameters() -> None:
    model = make_target()
    draft = TrainableDraft(decoder_of(model), "features", [2])

    names = {name for name, _ in draft.named_parameters()}

    assert not any("embed" in name or "head" in name for name in names)
    assert "fc.weight" in names
    assert all(parameter.requires_grad for parameter in draft.parameters())
