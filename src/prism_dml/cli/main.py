"""Entry point of ``prism``: finds the command, runs it, and turns a failure into one line and a status."""

import difflib
import logging
import os
import signal
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module

from prism_dml import __version__

COMMANDS = {
    "demo": "Train with and without PRISM and Refract with half the labels wrong; needs no data. Start here.",
    "train": "Train an embedding on images whose labels cannot be trusted.",
    "methods": "List the methods that `prism train --method` knows, each with a line.",
    "evaluate": "Measure how well a trained model retrieves images of classes it has never seen.",
    "embed": "Write the embeddings of a data set to a file.",
    "audit": "Say which labels of a data set look wrong, and write a page to review them.",
    "apply": "Write a data set with its labels corrected; the input stays as it is.",
    "index": "Build an index of a data set's embeddings, to search in.",
    "search": "Find the images of an index that are most like others.",
    "export": "Write a trained model as one file for other programs: ONNX or safetensors.",
    "corrupt": "Make some labels of a data set wrong, on purpose, for experiments.",
    "benchmark": "Compare methods on the same wrong labels: methods x noise x seeds, resumable.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        Exit status: 0 done, 2 a user's mistake or a lack of room (one line on standard error), 128 +
        signal when stopped: 130 for Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        sys.stdout.write(f"prism {__version__}\n")
        return 0
    _log_to_standard_error()
    try:
        _run(arguments[0], arguments[1:])
        sys.stdout.flush()
    except (ArgumentError, ValueError, OSError) as error:
        return _report(error)
    except (MemoryError, RuntimeError) as error:
        from prism_dml.training.shortage import explained

        known = explained(error) or error
        if isinstance(known, RuntimeError):
            raise
        return _report(
            MemoryError(f"not enough memory: {known}") if isinstance(known, MemoryError) else known
        )
    except KeyboardInterrupt as stop:  # a training run adds which signal it was and where it can be resumed
        sys.stderr.write(f"prism: {str(stop) or 'interrupted'}\n")
        return 128 + int(getattr(stop, "signal", signal.SIGINT))
    return 0


def _run(command: str, arguments: Sequence[str]) -> None:
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"the commands are {', '.join(COMMANDS)}"
        raise ValueError(f"unknown command '{command}': {hint}")
    # Imported here, and only the one that runs: `prism --help` must not wait for torch.
    from prism_dml.cli.parser import parse

    function = getattr(import_module(f"prism_dml.cli.{command}"), command)
    function(**parse(function, f"prism {command}", arguments))


def _report(error: Exception) -> int:
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if os.environ.get("PRISM_DEBUG"):
        traceback.print_exc()
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        message = f"{error.strerror}: {error.filename}"
    else:
        message = str(error) or type(error).__name__
    sys.stderr.write(f"prism: error: {' '.join(message.split())}\n")
    return 2


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = "".join(f"  {name:<{width}}  {summary}\n" for name, summary in COMMANDS.items())
    return f"""usage: prism COMMAND [OPTIONS]

Embeddings from labels that cannot be trusted.

commands:
{lines}
options:
  -h, --help  Show this help; `prism COMMAND --help` shows a command's arguments, units and defaults.
  --version   Show the version.

PRISM_DEBUG=1 in the environment shows where an error came from.
"""


def _log_to_standard_error() -> None:
    logger = logging.getLogger("prism_dml")
    if not logger.handlers:
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("prism: warning: %(message)s"))
        logger.addHandler(handler)


class _StandardError(logging.Handler):
    """Writes to what is standard error at that time: a program that calls `main` may have put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except Exception:  # as any handler: a reader that has gone must not end a run
            self.handleError(record)
