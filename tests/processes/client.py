"""Sends a request to the fork server: what to run, and the descriptors that the child gets.

    python -I -S client.py SOCKET MODULE ARGUMENT...

As a program it stands for `python -m MODULE ARGUMENT...` in a shell's script, and starts in 20 ms because it imports
nothing but a few modules of the standard library.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress

LENGTH = struct.Struct("I")
"""Precedes the request: its number of bytes."""
READY = b"ready\n"
"""On the server's stdout, once a client can connect."""


def send_request(path: str, descriptors: Mapping[int, int], **request: object) -> socket.socket:
    """Sends a `tests.processes.server.Request`.

    Args:
        path: Socket of the server.
        descriptors: The child's number of a descriptor -> ours.
        **request: The other attributes of the request.

    Returns:
        A connection that gives a line with the process id, then one with the exit status.
    """
    body = json.dumps({**request, "descriptors": list(descriptors)}).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    socket.send_fds(connection, [LENGTH.pack(len(body))], list(descriptors.values()))
    connection.sendall(body)
    return connection


def open_descriptors() -> list[int]:
    """Returns which of stdin, stdout and stderr are open."""
    found = []
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            os.fstat(descriptor)
            found.append(descriptor)
    return found


def main() -> None:
    """Runs the module with this process's descriptors, and ends with its status, as a shell would report it."""
    path, module, *arguments = sys.argv[1:]
    descriptors = {descriptor: descriptor for descriptor in open_descriptors()}
    connection = send_request(
        path, descriptors, module=module, arguments=arguments, environment=dict(os.environ), folder=os.getcwd()
    )
    with connection.makefile("rb") as answer:
        _, code = answer.readline(), int(answer.readline())
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
