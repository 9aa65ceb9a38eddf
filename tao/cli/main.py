"""The command line, ``tao`` or ``python -m tao``: selects the command and returns the exit status.

Each command is a separate module, imported when it is called. An error is one line on stderr: a
wrong call exits with status 2, a failure with 1. Ctrl-C exits quietly with 130, except for a
server, which shuts down gracefully and exits with 0. See ``tao COMMAND --help``.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from tao.cli.arguments import make_parser
from tao.cli.common import DONE, FAILED, INTERRUPTED, WRONG_CALL, Failed, WrongCall, complain

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: without the program's name; None: those of the process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack characters
            stream.reconfigure(errors="backslashreplace")
    try:
        parser = make_parser()
        options, unknown = parser.parse_known_args(words)
        if unknown:
            about = f"tao {options.command}" if options.command else "tao"
            raise WrongCall(f"{about} does not know {' '.join(unknown)} (see {about} --help)")
        options.words = words
        if options.print_completion is not None:
            from tao.cli.completion import script

            print(script(parser, options.print_completion))
            return DONE
        if options.command is None:
            parser.print_help()
            return DONE
        status = _run(options)
        sys.stdout.flush()
        return status
    except WrongCall as error:
        complain(str(error))
        return WRONG_CALL
    except Failed as error:
        complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has gone; Python would complain at exit that it cannot flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "serve" if options.supervised:
            from tao.cli.worker import run
        case "serve" if options.processes is not None:
            from tao.cli.processes import run
        case "serve":
            from tao.cli.serve import run
        case "connect":
            from tao.cli.connect import run
        case "bench":
            from tao.cli.bench import run
        case "top":
            from tao.cli.top import run
        case "frame":
            from tao.cli.frame import run
        case _:
            from tao.cli.dev_cert import run
    return run(options)
