"""Makes a draft for a target: generates texts, trains, measures and saves. Each stage continues where it stopped.

Unfinished work is in `FOLDER/.distill`. It can be interrupted at any point and is removed when the draft is finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specgen.core.errors import SettingsError
from specgen.core.progress import ProgressListener
from specgen.core.settings import BackendSettings, DtypeName, PairSettings
from specgen.distill.draft import SharedWeights, TrainableDraft, frequent_ids
from specgen.distill.folders import WorkFolder, lock_folder, prepare_folders
from specgen.distill.initialization import choose_layers, fit_input
from specgen.distill.measurement import DraftAcceptance, measure_acceptance, time_pair
from specgen.distill.saving import Curve, TrainingRecord, draft_config, format_card, publish_draft, save_draft
from specgen.distill.settings import DistillProgress, DistillRequest, TextSettings
from specgen.distill.target_texts import TargetText, read_texts, save_texts
from specgen.distill.text_folder import TextFolder
from specgen.distill.text_generation import BatchGenerator
from specgen.distill.training import Trainer
from specgen.loading.config_check import read_config
from specgen.loading.draft_head_folder import digest_of, target_digest
from specgen.loading.placement import Placement, choose_placement, has_fast_bf16_cpu
from specgen.loading.resolved_model import ModelFiles, ResolvedModel
from specgen.loading.weights import load_own_decoder
from specgen.models.cuda import prepare_cuda
from specgen.runtime import learned_costs
from specgen.runtime.pair import resolve_pair

WORK_FOLDER = ".distill"
HELD_OUT = "held-out.safetensors"
NUM_MEASUREMENTS = 10
"""Measurements of the acceptance during training."""
MEASURED_STEPS = 3
MEAN_LOSS_STEPS = 20

OnProgress = Callable[[DistillProgress], None]


@dataclass(frozen=True, slots=True)
class DistillResult:
    """A finished draft.

    Args:
        folder: The draft's.
        num_bytes: Of its weights.
        acceptance: On held-out prompts.
        length, speedup: The draft length with the highest predicted speedup, and that speedup.
    """

    folder: Path
    num_bytes: int
    acceptance: DraftAcceptance
    length: int
    speedup: float


class Distillation:
    """Makes one draft.

    Args:
        request: Which draft to make.
        progress: Receives the progress of loading.

    Raises:
        SettingsError: The folder contains something else, or work with other settings.
        LoadError: The target can't be loaded, or its architecture is not supported.
        OutputError: The folder can't be created, or the disk has too little space.
    """

    def __init__(self, request: DistillRequest, progress: ProgressListener) -> None:
        self._request, self._settings, self._folder = request, request.settings, request.folder
        self._work = request.folder / WORK_FOLDER
        self._texts_folder = request.texts_folder or self._work / "texts"
        self._target = replace(request.target, backend=BackendSettings("torch"))
        self._pair = resolve_pair(PairSettings(self._target, drafter="none"), progress)
        target = self._pair.target
        self._target_layers = choose_layers(target.config, target.name, self._settings)
        self._prepare_folders()
        progress.stage(f"loading target {target.name}")
        unquantized, placement = _trained_placement(target)
        if placement.device.startswith("cuda"):
            prepare_cuda()
        self._decoder, _ = load_own_decoder(unquantized, placement)
        # Rows after the tokenizer's table are padding, not tokens.
        self._vocab_size = min(self._decoder.spec.vocab_size, target.num_tokens)

    def run(self, on_progress: OnProgress) -> DistillResult:
        """Does the remaining work.

        Raises:
            OutputError: The disk is full.
            PromptError: All prompts are too long.
            SettingsError: Another process makes the same draft, or generates the same texts.
        """
        self._texts_folder.mkdir(exist_ok=True)
        with lock_folder(self._work), lock_folder(self._texts_folder):
            return self._run(on_progress)

    def _run(self, on_progress: OnProgress) -> DistillResult:
        made = self._work / "made"
        record, acceptance, prompt_ids = self._train_and_measure(made, on_progress)
        # The timing loads the target in its usual format, after this copy is released.
        del self._decoder
        timed = time_pair(self._target, made, prompt_ids)
        length, speedup = acceptance.best_length(timed.costs)
        on_progress(DistillProgress("saving", 0, 1, alpha=acceptance.alpha(length)))
        num_bytes = publish_draft(made, self._folder, format_card(record, acceptance, timed))
        if length:
            files = self._pair.target.files, ModelFiles(self._folder, self._folder.name)
            learned_costs.write_alpha(learned_costs.acceptance_key(*files, "same"), acceptance.alpha(length))
        shutil.rmtree(self._work)
        return DistillResult(self._folder, num_bytes, acceptance, length, speedup)

    def _train_and_measure(
        self, made: Path, on_progress: OnProgress
    ) -> tuple[TrainingRecord, DraftAcceptance, list[int]]:
        """Trains a draft and saves it in the folder `made`; also returns the longest held-out prompt."""
        settings = self._settings
        texts, held_out, num_new = self._texts(on_progress)
        target = self._decoder
        ids = frequent_ids(texts, settings.num_draft_ids, self._vocab_size, sorted(self._pair.end_ids))
        shared = SharedWeights(target.embedding, target.head.get_parameter("weight"), ids.to(target.device))
        draft = TrainableDraft(target, settings.kind, self._target_layers)
        explained = fit_input(draft, target, texts)
        curve = self._train(Trainer(draft, texts, shared, settings), held_out, on_progress)
        on_progress(DistillProgress("measuring", 0, 1))
        acceptance = measure_acceptance(draft, held_out, shared)
        config = read_config(self._pair.target.path)
        digest = target_digest(target.embedding, config)
        config = draft_config(config, draft, self._pair.target.name, digest, len(ids))
        about = config["specgen_draft"]
        record = TrainingRecord(settings, about, len(texts), num_new, len(held_out), explained, curve)
        save_draft(made, draft, ids, config)
        longest = max(held_out, key=lambda text: text.num_prompt)
        return record, acceptance, longest.ids[: longest.num_prompt].tolist()

    def _prepare_folders(self) -> None:
        """Creates the folders, or accepts those of an earlier run with the same settings."""
        target, settings, texts_folder = self._pair.target, self._settings, self._request.texts_folder
        hidden, texts = int(target.config.values["hidden_size"]), settings.texts
        identity: dict[str, Any] = {
            "target": target.name,
            "target_digest": digest_of(target),
            "prompts": [list(map(asdict, messages)) for messages in self._request.own_prompts],
        }
        text_bytes = texts.num_prompts * (texts.max_new_tokens + 100) * hidden * 2
        draft_bytes = 100 * 2**20 * (hidden > 512)
        folders = []
        if texts_folder is None:
            draft_bytes += text_bytes
        else:
            kept, ours = texts_folder.resolve(), self._folder.resolve()
            if kept == ours or ours in kept.parents or kept in ours.parents:
                raise SettingsError(f"{texts_folder} and {self._folder} contain each other", "give separate folders")
            text_settings = {**identity, "seed": settings.seed, "texts": _recorded(texts)}
            folders.append(WorkFolder(texts_folder, texts_folder, text_settings, "texts of the target", text_bytes))
            identity["texts_folder"] = str(kept)
        draft_settings = {**identity, **asdict(settings), "texts": _recorded(texts)}
        folders.append(WorkFolder(self._folder, self._work, draft_settings, "an unfinished draft", draft_bytes))
        prepare_folders(folders)

    def _texts(self, on_progress: OnProgress) -> tuple[list[TargetText], list[TargetText], int]:
        """Generates missing texts; returns the training texts, the held-out ones, and how many tokens are new."""
        generator = BatchGenerator(self._decoder, self._vocab_size, self._pair.end_ids)
        texts = self._settings.texts
        folder = TextFolder(self._texts_folder, generator, self._pair.tokenizer, texts, self._settings.seed)

        def on_batch(done: int, total: int) -> None:
            on_progress(DistillProgress("writing", done, total, folder.num_tokens))

        path = self._work / HELD_OUT
        if not path.exists():
            encoded = map(folder.encode, self._request.held_out)
            prompts = [ids for ids in encoded if len(ids) <= texts.max_prompt_tokens]
            save_texts(path, generator.generate(prompts, [0.0] * len(prompts), texts.max_new_tokens, 0))
        if self._request.own_prompts:
            folder.generate_own(self._request.own_prompts, on_batch)
        else:
            folder.generate_bundled(on_batch)
        generated = [text for file in sorted(self._texts_folder.glob("*.safetensors")) for text in read_texts(file)]
        return generated, read_texts(path), folder.num_tokens

    def _train(self, trainer: Trainer, held_out: list[TargetText], on_progress: OnProgress) -> Curve:
        """Trains to the end; returns step, mean loss and acceptance at each measurement."""
        curve: Curve = []
        losses: list[float] = []
        alpha: float | None = None
        interval = max(1, trainer.num_steps // NUM_MEASUREMENTS)
        for loss in trainer.run(self._work / "checkpoint"):
            losses = [*losses[-MEAN_LOSS_STEPS + 1 :], loss]
            mean = sum(losses) / len(losses)
            if trainer.step % interval == 0:
                acceptance = measure_acceptance(trainer.draft, held_out, trainer.shared, MEASURED_STEPS)
                alpha = acceptance.alpha(MEASURED_STEPS)
                curve.append((trainer.step, mean, alpha))
            on_progress(DistillProgress("training", trainer.step, trainer.num_steps, loss=mean, alpha=alpha))
        return curve


def _trained_placement(target: ResolvedModel) -> tuple[ResolvedModel, Placement]:
    """Returns an unquantized target and its placement: in bfloat16 where that is fast, else in float32."""

    def placed(dtype: DtypeName) -> tuple[ResolvedModel, Placement]:
        unquantized = replace(target, settings=replace(target.settings, quant="none", dtype=dtype))
        return unquantized, choose_placement(unquantized.settings, target.config, from_gguf=target.files.from_gguf)

    _, usual = placed("auto")
    # Packed weights can't be trained, and texts of many rows are faster on torch's kernels.
    is_fast = usual.packed_dtype is None or has_fast_bf16_cpu()
    return placed("bfloat16" if usual.dtype == "bfloat16" and is_fast else "float32")


def _recorded(texts: TextSettings) -> dict[str, Any]:
    """Returns the settings that a folder of texts is recognized by; earlier versions had no template variables."""
    return {key: value for key, value in asdict(texts).items() if key != "template_variables" or value}
