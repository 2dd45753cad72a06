"""Checks what `specgen batch --server` needs, and connects to the server."""

from __future__ import annotations

import os

from specgen.batch.results import Answering
from specgen.batch.served import ServedBatch, ServedSettings
from specgen.cli.app_spec import Option
from specgen.cli.batch.options import BatchOptions
from specgen.cli.options import groups as g
from specgen.cli.options.fields import options_of
from specgen.cli.options.models import BACKEND, MODELS
from specgen.cli.request import check_stops, parse_template_variables
from specgen.core.errors import SettingsError
from specgen.core.progress import ProgressListener
from specgen.core.settings import DEFAULT_MAX_NEW_TOKENS
from specgen.servers.http import HttpOptions
from specgen.servers.server import open_server
from specgen.servers.values import Address, parse_address

_DECIDED_BY_SERVER = (MODELS, BACKEND, g.SPECULATION)
"""Headings of options that a server has decided when it started; `-t` chooses one of its models."""


class ServedInputs:
    """The checked options of a batch on a server.

    Raises:
        SettingsError: A value is out of range, or an option is one that the server has decided.
    """

    def __init__(self, options: BatchOptions) -> None:
        server = options.server
        for option in options_of(BatchOptions):
            if option.field in options.given and _is_decided(option):
                raise SettingsError(
                    f"{option.long_names[0]} and --server exclude each other: the server decided that when it started",
                    f"omit {option.long_names[0]}",
                )
        if options.text.chat_template != "auto":
            raise SettingsError(
                "--chat-template and --server exclude each other: templates are the server's", "omit it"
            )
        options.sampling.resolve(None)  # checks ranges
        check_stops(options.text.stops)
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        given = {name: value for name in names if (value := getattr(options.sampling, name)) is not None}
        variables = parse_template_variables(options.text.chat_template_variables)
        limit = options.text.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        self._settings = ServedSettings(limit, given, options.text.stops, variables, server.concurrency)
        self._address: Address = parse_address(server.server or "", allows_insecure_key=server.insecure_key)
        self._model = options.models.target
        self._timeout = server.timeout

    def open(self, progress: ProgressListener) -> Answering:
        """Connects to the server and recognizes its engine.

        Raises:
            ServerError: It can't be reached, refuses the key, or is no such server.
            ModelNotFoundError: It does not have the model.
            SettingsError: It has several models and none is named, or does not know a sampling setting.
        """
        progress.stage(f"connecting to {self._address.host}")
        server = open_server(self._address, self._model, HttpOptions(self._timeout))
        return ServedBatch(server, self._settings)


def _is_decided(option: Option) -> bool:
    comes_from_environment = option.env is not None and option.env in os.environ
    return option.heading in _DECIDED_BY_SERVER and option.field != "target" and not comes_from_environment
