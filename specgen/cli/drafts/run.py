"""Runs `specgen drafts`: ranks the drafts for a target."""

from __future__ import annotations

from specgen.cli.drafts.options import DraftsOptions
from specgen.cli.streams import Messages, loading, print_text, require_stdout, write_document
from specgen.core.progress import ProgressListener
from specgen.core.settings import PairSettings
from specgen.doctor.draft_forecast import DraftRanking
from specgen.render.drafts import format_ranking, ranking_document
from specgen.runtime.pair import resolve_pair
from specgen.text.prompts import PromptFormat, bundled_prompts, choose_evenly

NUM_PROMPTS = 5


def run(options: DraftsOptions) -> int:
    """Ranks the drafts for a target, prints the ranking and returns the exit code.

    Raises:
        SpecgenError: The target can't be used.
    """
    messages = Messages("auto", options.verbosity.quiet)
    require_stdout("the ranking")
    with loading(messages, options.verbosity) as progress:
        ranking = _rank(options, progress)
    if options.json:
        write_document(ranking_document(ranking))
    else:
        print_text(format_ranking(ranking), "auto")
    return 0


def _rank(options: DraftsOptions, progress: ProgressListener) -> DraftRanking:
    # These import torch.
    from specgen.doctor.draft_measurement import measure_drafts
    from specgen.doctor.draft_ranking import rank_drafts

    backend = options.backend.settings()
    target = options.load.target_settings(options.target, backend)
    like = options.load.draft_settings(backend)
    baseline = resolve_pair(PairSettings(target, "none"), progress)
    ranking = rank_drafts(baseline, options.drafts, like, progress)
    if not options.measure or not ranking.drafts:
        return ranking
    prompts = choose_evenly(bundled_prompts(), NUM_PROMPTS)
    prompt_format = PromptFormat(is_raw=not baseline.tokenizer.chat_template)
    encoded = [prompt_format.encode(baseline.tokenizer, prompt.messages) for prompt in prompts]
    return measure_drafts(ranking, baseline, encoded, like, progress)
