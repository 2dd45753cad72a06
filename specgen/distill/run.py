"""A target and settings in, the folder of a trained draft out: texts, training, measurement, saving, each resumable.

All that is unfinished lies in `FOLDER/.distill`; it may be stopped at any place, and is gone when the draft is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from specgen.core.errors import SettingsError
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import BackendSettings, ModelSettings
from specgen.distill.acceptance import Acceptance, measure
from specgen.distill.card import Facts, format_card
from specgen.distill.draft import Draft
from specgen.distill.fitting import fit_input
from specgen.distill.folders import WorkFolder, lock_folder, prepare_folders
from specgen.distill.pass_costs import time_costs
from specgen.distill.prompts import SeedPrompt
from specgen.distill.saving import draft_config, publish, save_draft
from specgen.distill.settings import DistillProgress, DistillSettings
from specgen.distill.target_layers import choose_layers
from specgen.distill.text_generation import BatchGenerator
from specgen.distill.texts import Text, TextFolder, read_shard, save_shard
from specgen.distill.training import Trainer, frequent_ids, share
from specgen.loading.config_check import read_config
from specgen.loading.draft_head_folder import digest_of, target_digest
from specgen.loading.transformers_weights import load_weights
from specgen.runtime.pair import PairSettings, resolve_pair

WORK_FOLDER = ".distill"
HELD_OUT = "held-out.safetensors"
NUM_MEASUREMENTS = 10
"""Measurements of the acceptance while training."""
MEASURED_STEPS = 3
MEAN_LOSS_STEPS = 20


@dataclass(frozen=True, slots=True)
class DistillResult:
    """What came of it.

    Args:
        folder: The draft.
        num_bytes: Of its weights.
        acceptance: On held-out prompts.
        length, speedup: The draft length that pays most by prediction, and what it pays.
    """

    folder: Path
    num_bytes: int
    acceptance: Acceptance
    length: int
    speedup: float


class Distillation:
    """One draft in the making.

    Args:
        target: Which model; it is loaded in float32 for writing and training.
        settings: What draft.
        folder: Where it goes.
        held_out: Prompts to measure on; never trained on.
        own_prompts: Prompts to train on instead of the bundled set.
        texts_folder: Where the target's texts are kept for other drafts; None drops them with all else that is
            unfinished.
        progress: Receives the progress of loading.

    Raises:
        SettingsError: The folder holds something else, or a run with other settings.
        LoadError: The target can't be loaded, or no draft can be made of its architecture.
        OutputError: The folder can't be made, or has too little room.
    """

    def __init__(
        self,
        target: ModelSettings,
        settings: DistillSettings,
        folder: Path,
        held_out: Sequence[str],
        own_prompts: Sequence[str] = (),
        texts_folder: Path | None = None,
        progress: ProgressListener = SILENT,
    ) -> None:
        self.settings, self.folder = settings, folder
        self._held_out, self._own_prompts = list(held_out), list(own_prompts)
        self._work = folder / WORK_FOLDER
        self._texts_folder = texts_folder or self._work / "texts"
        self._target = replace(target, backend=BackendSettings("transformers"))
        self._pair = resolve_pair(PairSettings(self._target, drafter="none"), progress)
        self._target_layers = choose_layers(self._pair.target.path, self._pair.target.name, settings)
        self._begin(texts_folder)
        trained = replace(self._pair.target, settings=replace(self._target, quant="none", dtype="float32"))
        loaded = load_weights(trained, progress)
        self._model: Any = loaded.model
        # Rows behind the tokenizer's table are padding, and no tokens.
        self._vocab_size = min(int(self._model.config.vocab_size), self._pair.target.num_tokens)

    def run(self, tell: Callable[[DistillProgress], None]) -> DistillResult:
        """Do what is left to do.

        Raises:
            OutputError: There is no room.
            PromptError: No prompt is short enough.
            SettingsError: Another process makes the same draft, or writes into the same texts.
        """
        self._texts_folder.mkdir(exist_ok=True)
        with lock_folder(self._work), lock_folder(self._texts_folder):
            return self._made(tell)

    def _made(self, tell: Callable[[DistillProgress], None]) -> DistillResult:
        made = self._work / "made"
        facts, acceptance, prompt_ids = self._trained(made, tell)
        # Timed as it will run, in the target's usual form: the float32 copy it was trained with goes first.
        self._model = None
        timed = time_costs(self._target, made, prompt_ids)
        length, speedup = timed.costs.best(acceptance)
        tell(DistillProgress("saving", 0, 1, alpha=acceptance.alpha(length)))
        num_bytes = publish(made, self.folder, format_card(facts, acceptance, timed))
        shutil.rmtree(self._work)
        return DistillResult(self.folder, num_bytes, acceptance, length, speedup)

    def _trained(self, made: Path, tell: Callable[[DistillProgress], None]) -> tuple[Facts, Acceptance, list[int]]:
        """Train a draft and leave it in a folder; what is known of it, and the longest prompt it was measured on."""
        settings = self.settings
        texts, held_out, num_new = self._texts(tell)
        embedding = self._model.get_input_embeddings().weight.detach().float()
        head = self._model.get_output_embeddings().weight.detach().float()
        ids = frequent_ids(texts, settings.num_draft_ids, self._vocab_size, sorted(self._pair.end_ids))
        shared = share(embedding, head, ids.to(head.device))
        draft = Draft(self._model, settings.kind, self._target_layers)
        explained = fit_input(draft, self._model, texts)
        trainer = Trainer(
            draft, texts, shared, settings.train, seed=settings.seed, checkpoint=self._work / "checkpoint"
        )
        curve = self._train(trainer, held_out, tell)
        tell(DistillProgress("measuring", 0, 1))
        acceptance = measure(draft, held_out, shared)
        config = self._config(draft, len(ids), embedding)
        facts = Facts(settings, config["specgen_draft"], len(texts), num_new, len(held_out), explained, tuple(curve))
        save_draft(made, draft, ids, config)
        longest = max(held_out, key=lambda text: text.num_prompt)
        return facts, acceptance, longest.ids[: longest.num_prompt].tolist()

    def _begin(self, texts_folder: Path | None) -> None:
        """Make the folders, or find what an earlier run of the same settings left."""
        path, settings = self._pair.target.path, self.settings
        hidden, texts = int(read_config(path)["hidden_size"]), settings.texts
        about: dict[str, Any] = {
            "target": self._pair.target.name,
            "target_digest": digest_of(path),
            "prompts": self._own_prompts,
        }
        for_texts = texts.num_prompts * (texts.max_new_tokens + 100) * hidden * 2
        needed = 100 * 2**20 * (hidden > 512)
        places = []
        if texts_folder is None:
            needed += for_texts
        else:
            kept, ours = texts_folder.resolve(), self.folder.resolve()
            if kept == ours or ours in kept.parents or kept in ours.parents:
                raise SettingsError(f"{texts_folder} and {self.folder} lie in each other", "give folders apart")
            wanted = {**about, "seed": settings.seed, "texts": asdict(texts)}
            places.append(WorkFolder(texts_folder, texts_folder, wanted, "texts of the target", for_texts))
            about["texts_folder"] = str(kept)
        wanted = {**about, **settings.as_document()}
        prepare_folders([*places, WorkFolder(self.folder, self._work, wanted, "an unfinished draft", needed)])

    def _texts(self, tell: Callable[[DistillProgress], None]) -> tuple[list[Text], list[Text], int]:
        """The target's texts, the held-out ones, and the tokens it wrote; what is missing is written."""
        writer = BatchGenerator(self._model, self._vocab_size, self._pair.end_ids)
        texts = self.settings.texts
        folder = TextFolder(self._texts_folder, writer, self._pair.tokenizer, texts, self.settings.seed)

        def tell_written(done: int, total: int) -> None:
            tell(DistillProgress("writing", done, total, folder.num_tokens))

        path = self._work / HELD_OUT
        if not path.exists():
            prompts = [ids for ids in map(folder.encoded, self._held_out) if len(ids) <= texts.max_prompt_tokens]
            save_shard(path, writer.write(prompts, [0.0] * len(prompts), texts.max_new_tokens, 0))
        if self._own_prompts:
            folder.write_own([SeedPrompt("own", text) for text in self._own_prompts], tell_written)
        else:
            folder.write_bundled(tell_written)
        written = [text for file in sorted(folder.folder.glob("*.safetensors")) for text in read_shard(file)]
        return written, list(read_shard(path)), folder.num_tokens

    def _train(
        self, trainer: Trainer, held_out: Sequence[Text], tell: Callable[[DistillProgress], None]
    ) -> list[tuple[int, float, float]]:
        """Train to the end; step, loss and acceptance at the measurements."""
        curve: list[tuple[int, float, float]] = []
        losses: list[float] = []
        alpha: float | None = None
        pause = max(1, trainer.num_steps // NUM_MEASUREMENTS)
        for loss in trainer.run():
            losses = [*losses[-MEAN_LOSS_STEPS + 1 :], loss]
            mean = sum(losses) / len(losses)
            if trainer.step % pause == 0:
                alpha = measure(trainer.draft, held_out, trainer.shared, MEASURED_STEPS).alpha(MEASURED_STEPS)
                curve.append((trainer.step, mean, alpha))
            tell(DistillProgress("training", trainer.step, trainer.num_steps, loss=mean, alpha=alpha))
        return curve

    def _config(self, draft: Draft, num_ids: int, embedding: torch.Tensor) -> dict[str, Any]:
        config = read_config(self._pair.target.path)
        digest = target_digest(embedding, config)
        return draft_config(config, draft, self._pair.target.name, digest, num_ids)
