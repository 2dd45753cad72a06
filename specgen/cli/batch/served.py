"""Checks what `specgen batch --server` needs, and connects to the server."""

from __future__ import annotations

from specgen.cli.batch.options import BatchOptions
from specgen.cli.connection import address_of, open_at
from specgen.cli.options.server import check_given, served_model
from specgen.cli.request import check_stops, parse_template_variables
from specgen.core.batch import Answering
from specgen.core.progress import ProgressListener
from specgen.core.settings import DEFAULT_MAX_NEW_TOKENS
from specgen.runtime.batch.served_batch import ServedBatch, ServedSettings


class ServedInputs:
    """The checked options of a batch on a server.

    Raises:
        SettingsError: A value is out of range, or an option is one that the server has decided.
    """

    def __init__(self, options: BatchOptions) -> None:
        check_given(BatchOptions, options.given)
        options.sampling.resolve(None)  # checks ranges
        check_stops(options.text.stops)
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        given = {name: value for name in names if (value := getattr(options.sampling, name)) is not None}
        variables = parse_template_variables(options.text.chat_template_variables)
        limit = options.text.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        self._settings = ServedSettings(limit, given, options.text.stops, variables, options.served.concurrency)
        self._connection = options.served.connection
        self._address = address_of(self._connection, options.served.server)
        self._model = served_model(options.models.target)

    def open(self, progress: ProgressListener) -> Answering:
        """Connects to the server and recognizes its engine.

        Raises:
            ServerError: It can't be reached, refuses the key, or speaks another protocol.
            ModelNotFoundError: It does not have the model.
            SettingsError: It has several models and none is named, or does not know a sampling setting.
        """
        progress.stage(f"connecting to {self._address.host}")
        server = open_at(self._connection, self._address, self._model)
        return ServedBatch(server, self._settings)
