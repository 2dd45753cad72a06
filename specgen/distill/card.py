"""Facts of a distillation in, the card of the draft out: what it was made of, and what it does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specgen.core.results import ModelInfo
from specgen.distill.acceptance import Acceptance
from specgen.distill.pass_costs import Timed
from specgen.distill.settings import DistillSettings


@dataclass(frozen=True, slots=True)
class Facts:
    """What the card tells beside figures.

    Args:
        settings: What was asked for.
        about: The draft's own part of its config.
        num_texts: Texts trained on.
        num_new_tokens: Tokens of them that the target wrote.
        num_held_out: Texts measured on.
        explained: Share of the variance that the first guess explained (see `fit_input`).
        curve: Step, loss, and α at the measurements.
    """

    settings: DistillSettings
    about: dict[str, Any]
    num_texts: int
    num_new_tokens: int
    num_held_out: int
    explained: float
    curve: tuple[tuple[int, float, float], ...]


def format_card(facts: Facts, acceptance: Acceptance, timed: Timed) -> str:
    """The README.md of a draft's folder, in Markdown."""
    about, train = facts.about, facts.settings.train
    layers = ", ".join(str(index) for index in about["target_layers"])
    reads = "tokens and the target's last hidden states" if about["kind"] == "features" else "tokens"
    ids = "all tokens" if about["num_draft_ids"] is None else f"the {about['num_draft_ids']} the target writes most"
    costs = timed.costs
    length, speedup = costs.best(acceptance)
    rows = [
        (
            str(n),
            f"{acceptance.alpha(n):.3f}",
            f"{acceptance.tokens_per_round(n):.2f}",
            f"{acceptance.by_step[n - 1]:.3f}",
            f"{costs.passes[n] * 1000:.1f}",
            f"{costs.speedup(acceptance, n):.2f}",
        )
        for n in range(1, len(acceptance.num_rounds) + 1)
    ]
    head = ("draft length", "α", "tokens per round", "step right", "pass in ms", "predicted speedup")
    curve = [(str(step), f"{loss:.3f}", f"{alpha:.3f}") for step, loss, alpha in facts.curve]
    parts = [
        f"# A shallow draft for {about['target_name']}",
        f"Made by `specgen distill`. Kind `{about['kind']}`: reads {reads}. Begun as layers {layers} of the target; "
        f"embeddings and head are the target's own and not in this folder. It proposes {ids}.",
        "It changes the speed of a text and never the text: what it proposes is checked by the target.",
        "## Data",
        f"{facts.num_texts} texts with {facts.num_new_tokens} tokens written by the target itself, "
        f"{facts.settings.texts.greedy_share:.0%} of the answers greedy, the others at temperature "
        f"{facts.settings.texts.temperature}.",
        "## Loss",
        f"Cross entropy to the target's law over those tokens ({train.hard_share:.0%} of it to its best token alone) "
        f"plus {train.feature_weight} times the smooth L1 distance to the target's head inputs, over {train.unroll} "
        f"drafted steps. A linear fit to the first layer's input explained {facts.explained:.0%} at the start.",
        _table(("step", "loss", "α, drafts of 3"), curve),
        "## Measured",
        f"Greedy, on {facts.num_held_out} answers to prompts that were not trained on, by replaying the loop on the "
        f"target's own text. A drafted token costs {costs.draft * 1000:.2f} ms where a token of the target costs "
        f"{costs.passes[0] * 1000:.1f} ms (c = {costs.draft / costs.passes[0]:.3f}) on the machine it was made on, the "
        f"target in {_form(timed.target)} and the draft in {_form(timed.draft)}. Predicted to pay most: drafts of "
        f"{length}, {speedup:.2f}x.",
        _table(head, rows),
        "## Settings",
        f"```json\n{json.dumps(facts.settings.as_document(), indent=2)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _form(info: ModelInfo) -> str:
    return info.dtype if info.quant == "none" else info.quant


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
