"""Opens a chat with a server."""

from __future__ import annotations

from typing import Any

from specgen.cli.chat.options import ChatOptions
from specgen.cli.chat.settings import ChatSettings
from specgen.cli.connection import open_servers
from specgen.cli.options.server import draft_field, served_model
from specgen.cli.request import parse_template_variables
from specgen.runtime.servers.conversation import ServedConversation


def open_served_conversation(options: ChatOptions, settings: ChatSettings) -> ServedConversation:
    """Connects to the server, and to the one to compare it with; nothing is said yet.

    Raises:
        SettingsError: An address is invalid.
        ServerError: A server can't be reached, or refuses the key.
    """
    connection = options.connection
    variables = parse_template_variables(options.prompt.chat_template_variables)
    server, baseline = open_servers(options.server, connection, served_model(options.models.target))
    fields: dict[str, Any] = {"chat_template_kwargs": variables} if variables else {}
    fields |= draft_field(ChatOptions, options.given, options.models.draft, server)
    return ServedConversation(server, settings.for_reply(None), fields, baseline)
