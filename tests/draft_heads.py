"""Draft heads for tests: folders written by hand in their format, and a slow forward pass as the oracle."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from specgen.core.progress import SILENT
from specgen.core.settings import ModelSettings, SamplingSettings
from specgen.engine.contract import LanguageModel
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.randomness import PositionNoise, Randomness, TorchRandomness
from specgen.engine.sampling import Sampler
from specgen.loading.config_check import read_config
from specgen.loading.draft_head import load_draft_head
from specgen.loading.draft_head_folder import check_draft_head, target_digest
from specgen.loading.resolved_model import LoadedModel, ModelFiles, ResolvedModel
from specgen.models.decoder_model import DecoderModel
from specgen.models.draft_head import DraftHeadModel


def draft_body(target: Any, num_layers: int, seed: int) -> Any:
    """Returns transformers' base model of the target's kind, with random weights and `num_layers` layers."""
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * num_layers
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(target.model)(config).eval().to(target.dtype)


def write_draft(
    folder: Path,
    target: Any,
    *,
    kind: str = "layers",
    num_layers: int = 1,
    draft_ids: Sequence[int] | None = None,
    seed: int = 5,
    copies_target: bool = False,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a draft head for a transformers model in memory.

    Args:
        folder: Created.
        target: Its target.
        kind: `layers` or `features`.
        num_layers: Layers with random weights.
        draft_ids: Tokens it can propose.
        seed: Of its weights.
        copies_target: Its layers are copies of the target's first ones; with all of them it is the target itself.
        dtype: Of the stored weights; default: the target's.
    """
    body = draft_body(target, num_layers, seed)
    if copies_target:
        body.load_state_dict(target.model.state_dict(), strict=False)
    tensors = {name: value for name, value in body.state_dict().items() if not name.startswith("embed_tokens")}
    hidden = target.config.hidden_size
    if kind == "features":
        generator = torch.Generator().manual_seed(seed)
        tensors["fc.weight"] = torch.randn(hidden, 2 * hidden, generator=generator) / hidden**0.5
        if copies_target:
            tensors["fc.weight"] = torch.cat([torch.eye(hidden), torch.zeros(hidden, hidden)], dim=1)
    stored = {name: value.detach().to(dtype or target.dtype).contiguous() for name, value in tensors.items()}
    if draft_ids is not None:
        stored["draft_ids"] = torch.tensor(draft_ids, dtype=torch.int64)
    config = {**target.config.to_dict(), "num_hidden_layers": num_layers}
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][:1] * num_layers
    config["specgen_draft"] = {
        "format": 1,
        "kind": kind,
        "target_layers": list(range(num_layers)),
        "target_name": "toy",
        "target_digest": target_digest(target.get_input_embeddings().weight, target.config.to_dict()),
        "num_draft_ids": None if draft_ids is None else len(draft_ids),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def open_draft(folder: Path, target: DecoderModel) -> DraftHeadModel:
    """Loads the draft head of a folder for a target in memory, in its stored weight format."""
    model = load_draft(folder, target).model
    assert isinstance(model, DraftHeadModel)
    return model


def load_draft(folder: Path, target: LanguageModel) -> LoadedModel:
    """Loads the draft head of a folder for a loaded target. The result has the notices that a user sees."""
    return load_draft_head(resolved_head(folder), target.vocab_size, SILENT, target)


def resolved_head(folder: Path) -> ResolvedModel:
    """Returns the draft head in a folder, checked."""
    settings = ModelSettings(str(folder), quant="none")
    files = ModelFiles(folder, folder.name)
    return ResolvedModel(files, settings, "draft", check_draft_head(read_config(folder), folder), format="draft head")


def head_drafter(
    folder: Path,
    target: DecoderModel,
    sampling: SamplingSettings,
    randomness: Randomness | None = None,
    noise: PositionNoise | None = None,
) -> ModelDrafter:
    """Returns a drafter with the draft head of a folder."""
    model = open_draft(folder, target)
    randomness = randomness or TorchRandomness(sampling.seed, torch.device("cpu"))
    return ModelDrafter(model, target.vocab_size, Sampler(sampling, randomness, noise), columns=model.columns)


SHAPES: dict[str, dict[str, Any]] = {
    "head layers": {"kind": "layers", "num_layers": 1},
    "head features": {"kind": "features", "num_layers": 2},
    "head subset": {"kind": "features", "draft_ids": tuple(range(0, 96, 3))},
    "head oracle": {"kind": "layers", "num_layers": 2, "copies_target": True},
    "head features oracle": {"kind": "features", "num_layers": 2, "copies_target": True},
}
"""Draft heads for `tests.fakes.tiny_model`. Those named oracle compute what the target computes."""


def tiny_draft(name: str, target: Any, key: str) -> Path:
    """Returns the folder of one of `SHAPES`, written once per `key`, which identifies the target."""
    folder = _temporary_folder() / f"{name}-{key}".replace(" ", "-")
    return folder if folder.exists() else write_draft(folder, target, **SHAPES[name])


@cache
def _temporary_folder() -> Path:
    # Removed when the process ends.
    folder: Any = tempfile.TemporaryDirectory(prefix="specgen-drafts-")
    _FOLDERS.append(folder)
    return Path(folder.name)


_FOLDERS: list[Any] = []


class SlowDraft:
    """The forward pass as the format defines it: over the whole text each time, with transformers' own layers.

    Args:
        folder: A draft.
        target: Its target, in memory.
    """

    def __init__(self, folder: Path, target: Any) -> None:
        from safetensors.torch import load_file

        tensors = load_file(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        self.target = target
        self.ids = tensors.pop("draft_ids", None)
        self.join = tensors.pop("fc.weight", None)
        self.body = draft_body(target, config["num_hidden_layers"], 0)
        self.body.load_state_dict(tensors, strict=False)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], tail: Sequence[int] = (), start: int = 0) -> torch.Tensor:
        """Returns `[1, vocab]` after a text and a drafted tail; the draft reads from index `start` on."""
        text = [*ids, *tail]
        true = self.target.model(torch.tensor([ids])).last_hidden_state[0]
        embedded = self.target.get_input_embeddings().weight[torch.tensor(text)]
        output = torch.zeros(0, embedded.shape[1])
        # From index len(ids) - 1 on, its own outputs replace the features, so drafted tokens run one at a time.
        for length in range(len(ids), len(text) + 1):
            hidden = embedded[start:length]
            if self.join is not None:
                features = [true[: len(ids) - 1], output[len(ids) - 1 - start :]]
                before = torch.cat([torch.zeros(1, embedded.shape[1]), torch.cat(features)[start:]])[: length - start]
                hidden = torch.cat([hidden, before], dim=-1) @ self.join.float().T
            output = self.body(inputs_embeds=hidden[None], use_cache=False).last_hidden_state[0]
        logits = self.target.lm_head(output[-1:])
        return logits if self.ids is None else logits[:, self.ids]
