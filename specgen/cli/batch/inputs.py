"""Reads and checks what `specgen batch` needs, and loads its models."""

from __future__ import annotations

import os

from specgen.cli.batch.options import BatchOptions
from specgen.cli.prompt_input import read_text
from specgen.cli.request import (
    check_stops,
    parse_draft_length,
    parse_template_variables,
    parse_tree,
    read_lookup_files,
    template_source,
)
from specgen.core.batch import Answering, BatchRequest
from specgen.core.errors import SettingsError
from specgen.core.progress import ProgressListener
from specgen.core.settings import DEFAULT_MAX_NEW_TOKENS, DecodeSettings, DraftSchedule, PairSettings, TreeSchedule
from specgen.runtime.batch.local_fields import LocalSettings, read_settings
from specgen.runtime.batch.requests import parse_requests, text_messages
from specgen.runtime.pair import resolve_pair
from specgen.text.chat_template import ChatTemplate

MAX_FILE_BYTES = 256 * 2**20


def read_requests(options: BatchOptions) -> list[BatchRequest]:
    """Reads the file of prompts.

    Raises:
        SettingsError: It is also the output.
        PromptError: It can't be read, or a line is invalid.
    """
    if os.path.realpath(options.file) == os.path.realpath(options.output):
        raise SettingsError(f"{options.file} is the input and the output", "give another file with -o")
    return parse_requests(read_text(options.file, "prompts", MAX_FILE_BYTES), str(options.file))


class LocalInputs:
    """The checked options of a batch on this machine.

    Raises:
        SettingsError: A value is out of range, or a request has a field that is not answered here.
        PromptError: A file can't be read, or a message is not text.
    """

    def __init__(self, options: BatchOptions, requests: list[BatchRequest]) -> None:
        text = options.text
        options.sampling.resolve(None)
        self._options = options
        self._draft_length: tuple[int, DraftSchedule] = parse_draft_length(options.draft_tokens)
        self._tree: tuple[int, TreeSchedule] = parse_tree(options.tree)
        variables = parse_template_variables(text.chat_template_variables)
        source = template_source(text.chat_template)
        self._template = None if text.chat_template == "none" else ChatTemplate(source, variables)
        check_stops(text.stops)
        self._pair = _pair_settings(options)
        for request in requests:
            read_settings(request)
            text_messages(request)

    def open(self, progress: ProgressListener) -> Answering:
        """Loads the models. Call it once libraries are prepared.

        Raises:
            LoadError: A model is missing or damaged, or the target has no chat template.
            PairError: Draft and target do not share a vocabulary, and `--draft-vocab same` insists.
        """
        from specgen.runtime.batch.local_batch import open_batch  # torch

        options = self._options
        pair = resolve_pair(self._pair, progress)
        if self._template is not None:
            self._template.check(pair.tokenizer, pair.target.name)
        sampling, sampling_source = options.sampling.resolve(pair.defaults.sampling)
        settings = LocalSettings(
            sampling,
            sampling_source,
            DecodeSettings(
                DEFAULT_MAX_NEW_TOKENS,
                *self._draft_length,
                pair.end_ids,
                num_tree_nodes=self._tree[0],
                tree_schedule=self._tree[1],
            ),
            options.text.max_new_tokens,
            options.text.stops,
            self._template,
        )
        return open_batch(pair, settings, progress)


def _pair_settings(options: BatchOptions) -> PairSettings:
    lookup_texts = read_lookup_files(options.lookup_files, [options.models.draft])
    models, backend = options.models, options.backend.settings()
    return options.load.pair_settings(models.target, models.draft, backend, lookup_texts)
