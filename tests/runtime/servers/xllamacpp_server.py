"""Runs the llama-server inside xllamacpp with a command line of llama-server, read by llama.cpp's own parser.

Usage: PYTHON xllamacpp_server.py OPTIONS..., with the Python of an environment that has xllamacpp 2026.10.11549. The
package offers the parameters of the server, but not their parser, which is a symbol of its library.
"""

from __future__ import annotations

import ctypes
import signal
import sys

import xllamacpp  # type: ignore[import-not-found,unused-ignore]

PARSER = "_Z19common_params_parseiPPcR13common_params13llama_examplePFviS0_E"
OBJECT_HEAD_BYTES = 16
"""The parameters follow Python's object head, of a reference count and a type."""
SERVER_EXAMPLE = 12
"""`LLAMA_EXAMPLE_SERVER`: which options there are depends on the program."""


def parsed(words: list[str]) -> object:
    """Returns the parameters that llama.cpp reads from a command line; exits with 1 if it refuses."""
    parameters = xllamacpp.CommonParams()
    parse = getattr(ctypes.CDLL(xllamacpp.xllamacpp.__file__), PARSER)
    parse.restype = ctypes.c_bool
    encoded = (ctypes.c_char_p * (len(words) + 1))(*(word.encode() for word in words), None)
    address = ctypes.c_void_p(id(parameters) + OBJECT_HEAD_BYTES)
    if not parse(len(words), encoded, address, SERVER_EXAMPLE, None):
        sys.exit(1)
    return parameters


if __name__ == "__main__":
    server = xllamacpp.Server(parsed(sys.argv))
    signal.pause()
