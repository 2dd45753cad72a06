"""Part 5: replays compute what they recorded, float32 text is transformers'. Part 7: what the rows of a pass change."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from specgen.core.comparison import first_difference
from specgen.engine.contract import LanguageModel
from specgen.engine.near_ties import NUM_ULPS
from specgen.models.decoder import Decoder
from specgen.models.static.model import StaticModel
from specgen.models.static.recorder import PlainRecorder
from tests.gpu.isolation import described
from tests.gpu.models import (
    Quant,
    Shape,
    admission,
    config_of,
    eager_model,
    failure_of,
    num_recorded,
    random_decoder,
    spec_of,
    static_model,
    transformers_model,
)
from tests.gpu.passes import random_ids
from tests.gpu.report import Context


def compare(context: Context) -> None:
    """Part 5."""
    kinds: tuple[tuple[torch.dtype, Quant], ...] = (
        (torch.float32, "none"),
        (torch.bfloat16, "none"),
        (torch.bfloat16, "nf4"),
    )
    quants: tuple[Quant, ...] = ("none", "nf4")
    are_equal = True
    for dtype, quant in kinds:
        fields = {"dtype": str(dtype).removeprefix("torch."), "quant": quant}
        decoder = random_decoder(spec_of("7B", is_tiny=True), context.device, quant=quant, dtype=dtype)
        try:
            found = _compare_recorded(decoder, context.pick(200, 40))
        except RuntimeError as error:
            found = {"error": described(error)}
        context.say("replay_equals_plain", **fields, **found)
        are_equal &= found.get("num_unequal") == 0 and found.get("failure") is None
    for quant in quants:
        decoder = random_decoder(spec_of("0.5B", is_tiny=context.is_tiny), context.device, quant=quant)
        reason = admission(decoder)
        context.say("admission", shape="0.5B", quant=quant, reason=reason)
        are_equal &= reason is None
    shapes: tuple[Shape, ...] = ("7B", "8B")
    for shape in shapes:
        config = config_of(shape, is_tiny=True)
        decoder = random_decoder(spec_of(shape, is_tiny=True), context.device, dtype=torch.float32)
        texts = _greedy_texts(config, decoder, context.pick(128, 12))
        for name, text in texts.items():
            place = first_difference(texts["transformers"], text)
            context.say("float32_text", shape=shape, runner=name, num_tokens=len(text), first_difference=place)
            are_equal &= place is None
    assert are_equal, "a recorded pass or a text differs, or recorded passes would not be used"


@torch.inference_mode()
def _compare_recorded(decoder: Decoder, num_steps: int) -> dict[str, object]:
    """Gives two models the same passes, one of them recorded: texts that grow, shrink, and change their bucket."""
    recorded, plain = static_model(decoder), static_model(decoder, PlainRecorder())
    choice = random.Random(0)
    ids = random_ids(recorded, 1500)
    length, num_unequal, largest = 1, 0, 0.0
    for _ in range(num_steps):
        rows = choice.choice([1, 1, 2, 3, 4, 5, 6, 7, 8, 12, 17, 40, 150])
        if length + rows > len(ids):
            length = 1
            for model in (recorded, plain):
                model.rewind(0)
        first, second = (model.logits(ids[: length + rows], min(rows, 17)).clone() for model in (recorded, plain))
        num_unequal += not torch.equal(first, second)
        largest = max(largest, float((first - second).abs().max()))
        length += rows
        if choice.random() < 0.5:
            length = max(1, length - choice.randrange(1, 20))
        for model in (recorded, plain):
            model.rewind(length - 1)
        num_unequal += _draft_and_verdict(recorded, ids[:length]) != _draft_and_verdict(plain, ids[:length])
    return {
        "num_steps": num_steps,
        "num_unequal": num_unequal,
        "largest": largest,
        "num_recorded": num_recorded(recorded),
        "failure": failure_of(recorded),
    }


def _draft_and_verdict(model: StaticModel, ids: list[int]) -> list[int] | None:
    """Lets a model draft three tokens and verify them itself. Its cache is then as before."""
    length = model.length
    for index in range(3):
        model.draft_token(ids, index)
    draft = model.drafted_ids(3).clone()
    model.rewind(len(ids) - 1)
    read = model.verify_greedy(ids, draft)
    verdict = None if read is None else read()
    model.rewind(length)
    return verdict


@torch.inference_mode()
def _greedy_texts(config: object, decoder: Decoder, num_tokens: int) -> dict[str, list[int]]:
    model = transformers_model(config, decoder)
    prompt = random_ids(eager_model(decoder), 20)
    given = torch.tensor([prompt], device=decoder.device)
    output = model.generate(given, do_sample=False, min_new_tokens=num_tokens, max_new_tokens=num_tokens)
    return {
        "transformers": output[0, len(prompt) :].tolist(),
        "eager": greedy_text(eager_model(decoder), prompt, num_tokens),
        "static": greedy_text(static_model(decoder), prompt, num_tokens),
    }


def greedy_text(model: LanguageModel, prompt: list[int], num_tokens: int) -> list[int]:
    """Returns the likeliest tokens after a prompt, one pass each."""
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(model.logits(ids, 1)[0].argmax()))
    return ids[len(prompt) :]


@torch.inference_mode()
def measure_near_ties(context: Context) -> None:
    """Part 7: the logits of passes of several rows against those of one row, in steps of bfloat16 at the top logit."""
    quants: tuple[Quant, ...] = ("nf4", "none")
    for quant in quants:
        spec = spec_of("7B", is_tiny=context.is_tiny)
        model = static_model(random_decoder(spec, context.device, quant=quant))
        num_positions = context.pick(500, 40)
        ids = random_ids(model, 16 + num_positions)
        one_row = _logits_by_rows(model, ids, 1)
        for rows in context.pick((2, 3, 4, 5, 6, 8, 12), (2, 5)):
            several = _logits_by_rows(model, ids, rows)
            context.say("near_ties", quant=quant, rows=rows, **gaps(one_row[: several.shape[0]], several))


def _logits_by_rows(model: StaticModel, ids: list[int], rows: int) -> Tensor:
    """Returns the logits after each token from the 16th on, computed by passes of `rows` tokens."""
    model.rewind(0)
    model.feed(ids[:16])
    found = []
    for last in range(16 + rows, len(ids) + 1, rows):
        found.append(model.logits(ids[:last], rows).clone())
    return torch.cat(found)


def gaps(one_row: Tensor, several: Tensor) -> dict[str, float | int]:
    """Describes how two sets of logits `[positions, vocab]` differ.

    Returns:
        Largest difference of a position in steps (median, 99th percentile, largest), how often the likeliest token
        differs, and for these positions the distance between both tokens' logits in the one-row pass, in steps.
    """
    top = one_row.max(dim=-1)
    step = torch.exp2(torch.floor(torch.log2(top.values.abs()))) * torch.finfo(torch.bfloat16).eps
    steps = (one_row - several).abs().amax(dim=-1) / step
    others = several.argmax(dim=-1)
    is_flip = top.indices != others
    at_flips = ((top.values - one_row.gather(1, others[:, None])[:, 0]) / step)[is_flip]
    return {
        "num_positions": one_row.shape[0],
        "median_steps": float(steps.median()),
        "p99_steps": float(steps.quantile(0.99)),
        "largest_steps": float(steps.max()),
        "num_flips": int(is_flip.sum()),
        "median_gap_at_flips": float(at_flips.median()) if len(at_flips) else 0.0,
        "largest_gap_at_flips": float(at_flips.max()) if len(at_flips) else 0.0,
        "num_gaps_beyond_promise": int((at_flips > NUM_ULPS).sum()),
    }
