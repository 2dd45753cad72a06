"""Times the first token of the fifth turn of a long chat, with reused caches and with a prefill of the whole text.

    python -m tests.perf.chat_reuse [-t TARGET] [-d DRAFT|lookup|none] [--tokens 1000] [-r 3]

Both alternate on the same weights in one process. Not part of the test suite: run it while the machine is otherwise
idle.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median

from specgen.core.events import RoundText
from specgen.core.settings import ModelSettings, PairSettings, ReplySettings, SamplingSettings
from specgen.loading.libraries import prepare_libraries
from specgen.runtime.conversation import Conversation
from specgen.runtime.generation import Generation
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import resolve_pair
from specgen.text.chat_template import ChatTemplate

FACT = "The harbour keeps a list of every ship, its cargo, its captain and the day it came in. "


def first_token(conversation: Conversation, generation: Generation) -> float:
    """Returns the seconds until the first token is known."""
    for event in conversation.stream(generation):
        if isinstance(event, RoundText):
            generation.interrupt()
    seconds = generation.counts.ttft_seconds
    assert seconds is not None
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-t", "--target", default="")
    parser.add_argument("-d", "--draft", default="lookup")
    parser.add_argument("--tokens", type=int, default=1000, help="tokens of the first four turns, about")
    parser.add_argument("-r", "--repeat", type=int, default=3)
    arguments = parser.parse_args()
    prepare_libraries(False)
    kind = arguments.draft if arguments.draft in ("lookup", "none") else "model"
    draft = ModelSettings(arguments.draft) if kind == "model" else None
    models = load_models(resolve_pair(PairSettings(ModelSettings(arguments.target), drafter=kind, draft=draft)))
    settings = ReplySettings(SamplingSettings(), max_new_tokens=8)
    conversation = Conversation(models, settings, ChatTemplate())
    per_turn = len(models.pair.tokenizer.encode(FACT, add_special_tokens=False))
    for turn in range(4):
        conversation.say(FACT * max(1, arguments.tokens // 4 // per_turn) + f"Say {turn}.")
        generation = conversation.begin_reply()
        for _ in conversation.stream(generation):
            pass
        conversation.end_reply(generation)
    warm, cold, cached_ids = [], [], list(models.text_ids)
    before = conversation.messages
    for _ in range(arguments.repeat):
        conversation.messages = before
        conversation.say("And what is the list for?")
        generation = conversation.begin_reply()
        warm.append(first_token(conversation, generation))
        figures = generation.counts
        conversation.models.reset_caches()
        fresh = Generation(models, replace(generation.request))
        cold.append(first_token(conversation, fresh))
        assert fresh.counts.num_reused_tokens == 0
        # The caches hold the conversation again, up to where the fifth turn begins.
        models.reuse_prefix([*cached_ids, cached_ids[-1]])
    print(f"target       {models.target_info.name} {models.target_info.dtype} {models.target_info.device}")
    print(f"prompt       {figures.num_prompt_tokens} tokens, {figures.num_reused_tokens} reused")
    print(f"first token  {median(warm):.3f} s reused, {median(cold):.3f} s cold: {median(cold) / median(warm):.1f}x")


if __name__ == "__main__":
    main()
