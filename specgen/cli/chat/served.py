"""Opens a chat with a server."""

from __future__ import annotations

from specgen.cli.chat.options import ChatOptions
from specgen.cli.chat.settings import ChatSettings
from specgen.cli.options.server import served_model
from specgen.cli.request import parse_template_variables
from specgen.runtime.served_chat import ServedConversation
from specgen.servers.server import open_server


def open_served_conversation(options: ChatOptions, settings: ChatSettings) -> ServedConversation:
    """Connects to the server; nothing is said yet.

    Raises:
        SettingsError: The address is invalid.
        ServerError: The server can't be reached, or refuses the key.
    """
    connection = options.connection
    variables = parse_template_variables(options.prompt.chat_template_variables)
    server = open_server(connection.address(options.server), served_model(options.models.target), connection.http())
    fields = {"chat_template_kwargs": variables} if variables else {}
    return ServedConversation(server, settings.for_reply(None), fields)
