"""Connects to the servers that options name."""

from __future__ import annotations

from specgen.cli.options.server import ConnectionOptions, ServerOptions
from specgen.runtime.servers.http import HttpOptions
from specgen.runtime.servers.server import Server, open_server
from specgen.runtime.servers.values import Address, parse_address


def address_of(connection: ConnectionOptions, url: str) -> Address:
    """Returns the address for a URL, with the key; raises like `parse_address`."""
    return parse_address(url, connection.api_key_env, allows_insecure_key=connection.insecure_key)


def http_options(connection: ConnectionOptions, *, num_retries: int) -> HttpOptions:
    """Returns how patient the client is."""
    return HttpOptions(connection.timeout, num_retries)


def open_at(connection: ConnectionOptions, address: Address, model: str, *, num_retries: int = 2) -> Server:
    """Connects to a server; see `open_servers`."""
    return open_server(address, model, http_options(connection, num_retries=num_retries))


def open_servers(options: ServerOptions, connection: ConnectionOptions, model: str) -> tuple[Server, Server | None]:
    """Connects to a server, and to the one to compare it with, if there is one.

    Args:
        options: Their URLs.
        connection: How they are reached.
        model: One of the first server's models; empty: its only one.

    Raises:
        SettingsError: A URL is invalid, or a server has several models and none is named.
        ModelNotFoundError: The server does not have the model.
        ServerError: A server can't be reached, or refuses the key.
    """
    urls = (options.server, *([options.baseline_server] if options.baseline_server else []))
    addresses = [address_of(connection, url) for url in urls]
    server = open_at(connection, addresses[0], model)
    return server, open_at(connection, addresses[1], "") if len(addresses) > 1 else None
