"""Times the parts of a draft token in transformers' forward pass and in ours, interleaved on the same weights.

    python -m tests.perf.parts MODEL [--quant auto|none|int8|nf4] [--dtype auto] [--context 128] [-n 40]

`products` are the linear layers, `head` the output projection, `attention` the scaled dot product, `norms` the RMS
norms that are not computed within products; `rest` is everything else: rotary embedding, cache, masks, positions,
activation, Python. Figures are medians over passes of one token after a context. Timing a part costs about a
microsecond, which counts as rest. Run it while the machine is otherwise idle.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.nn import functional

from specgen.core.settings import BackendName, BackendSettings, ModelSettings
from specgen.loading.libraries import prepare_libraries
from specgen.loading.resolved_model import LoadedModel
from specgen.loading.weights import load_weights
from specgen.models.cached_model import CachedModel
from specgen.models.decoder_model import DecoderModel
from specgen.models.forward_pass import gated_feed_forward
from specgen.models.fused_layers import FusedFeedForward
from specgen.models.transformers_model import TransformersModel
from specgen.text.tokenizer import load_tokenizer
from specgen.text.vocabulary import table_size
from tests.loading.builders import resolved

PARTS = ("products", "head", "attention", "norms")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Stopwatch:
    """Sums seconds by part; a call inside of a timed part counts towards that part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._is_inside = False

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if self._is_inside:
                return function(*arguments, **options)
            self._is_inside = True
            started = perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[part] += perf_counter() - started
                self._is_inside = False

        return run

    def take(self) -> dict[str, float]:
        """Returns the sums so far and resets them."""
        taken, self.seconds = self.seconds, dict.fromkeys(PARTS, 0.0)
        return taken


def watch_theirs(model: Any, watch: Stopwatch) -> None:
    """Times the modules of a transformers model."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        part = "head" if last == "lm_head" else "products" if last in LINEAR else ""
        if type(module).__name__.endswith("RMSNorm"):
            part = "norms"
        if part:
            module.forward = watch.timed(part, module.forward)


def watch_ours(model: DecoderModel, watch: Stopwatch) -> None:
    """Times the functions that our decoder's layers call, and its last norm and head."""
    decoder = model.decoder
    for layer in decoder.layers:
        whole = layer.function
        attend = whole.attend
        attend.project, attend.output = watch.timed("products", attend.project), watch.timed("products", attend.output)
        if attend.qk_norms is not None:
            attend.qk_norms = (watch.timed("norms", attend.qk_norms[0]), watch.timed("norms", attend.qk_norms[1]))
        if isinstance(fused := whole.feed_forward, FusedFeedForward):
            fused.widen, fused.narrow = watch.timed("products", fused.widen), watch.timed("products", fused.narrow)
        else:
            assert isinstance(whole.feed_forward, partial), "the feed-forward that is not fused"
            spec, widen, narrow = whole.feed_forward.args
            products = (watch.timed("products", widen), watch.timed("products", narrow))
            whole.feed_forward = partial(gated_feed_forward, spec, *products)
        for name in ("attention_in", "attention_out", "mlp_in", "mlp_out"):
            if getattr(whole, name) is not None:
                setattr(whole, name, watch.timed("norms", getattr(whole, name)))
    for module, part in ((decoder.norm, "norms"), (decoder.head, "head")):
        module.forward = watch.timed(part, module.forward)


def measure(models: dict[str, CachedModel], watch: Stopwatch, num_context: int, num_passes: int) -> dict[str, Any]:
    """Returns the median seconds of a pass over one token, by model and part; the models alternate."""
    ids = [(7 * index + 3) % models["before"].vocab_size for index in range(num_context + 1)]
    samples: dict[str, dict[str, list[float]]] = {
        name: {part: [] for part in (*PARTS, "rest", "whole")} for name in models
    }
    for model in models.values():
        model.feed(ids[:-1])
    for number in range(num_passes + 3):  # the first ones warm up
        for name, model in models.items():
            watch.take()
            started = perf_counter()
            model.logits(ids, 1)
            whole = perf_counter() - started
            model.rewind(num_context)
            parts = watch.take()
            if number >= 3:
                for part, seconds in parts.items():
                    samples[name][part].append(seconds)
                samples[name]["rest"].append(whole - sum(parts.values()))
                samples[name]["whole"].append(whole)
    return {name: {part: median(values) for part, values in parts.items()} for name, parts in samples.items()}


def table(seconds: dict[str, dict[str, float]]) -> str:
    lines = [f"{'ms per token':<14}" + "".join(f"{name:>10}" for name in seconds)]
    for part in (*PARTS, "rest", "whole"):
        lines.append(f"{part:<14}" + "".join(f"{1000 * parts[part]:>10.2f}" for parts in seconds.values()))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--quant", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("-n", type=int, default=40, help="passes")
    arguments = parser.parse_args()
    prepare_libraries(False)
    num_tokens, watch = table_size(load_tokenizer(Path(arguments.model))), Stopwatch()

    def load(backend: BackendName) -> LoadedModel:
        settings = ModelSettings(
            arguments.model, quant=arguments.quant, dtype=arguments.dtype, backend=BackendSettings(backend)
        )
        return load_weights(resolved(Path(arguments.model), settings, role="draft"), num_tokens)

    loaded = load("torch")
    theirs = load("transformers").model
    models = {"before": theirs}
    assert isinstance(theirs, TransformersModel)
    watch_theirs(theirs.model, watch)
    if isinstance(loaded.model, DecoderModel):
        watch_ours(loaded.model, watch)
        models["after"] = loaded.model
    usual = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = watch.timed("attention", usual)  # type: ignore[assignment]
    info = loaded.info
    print(f"{info.name} {info.quant} {info.dtype} ({info.remark}), {torch.get_num_threads()} threads, ", end="")
    print(f"one token after {arguments.context}, median of {arguments.n} passes")
    print(table(measure(models, watch, arguments.context, arguments.n)))


if __name__ == "__main__":
    main()
