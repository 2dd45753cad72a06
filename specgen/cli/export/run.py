"""Runs `specgen export`: prints the command that starts a server."""

from __future__ import annotations

from rich.text import Text

from specgen.cli.export.inputs import read_request
from specgen.cli.export.options import ExportOptions
from specgen.cli.streams import Messages, require_stdout, use_utf8_stdout, write_document
from specgen.render.jsonl import SCHEMA_VERSION
from specgen.render.sanitize import one_line
from specgen.runtime.servers.launch.command import launch_command


def run(options: ExportOptions) -> int:
    """Prints the command and returns the exit code.

    Raises:
        SpecgenError: An option is wrong, or the engine can't run the pair.
    """
    messages = Messages(options.color, options.verbosity.quiet)
    request = read_request(options)
    command = launch_command(options.engine, request)
    require_stdout("the command")
    use_utf8_stdout()
    if options.json:
        write_document(
            {
                "type": "export",
                "schema_version": SCHEMA_VERSION,
                "engine": options.engine,
                "command": command.line,
                "argv": list(command.words),
                "remarks": list(command.remarks),
            }
        )
    else:
        print(command.line, flush=True)
    if options.pair.results is not None and request.speculation is None and not options.pair.baseline:
        messages.warning("the results recommend no draft, so this command starts the target alone")
    for remark in command.remarks:
        messages.info(Text().append("note: ", "muted").append(one_line(remark, ascii_only=messages.ascii_only)))
    return 0
