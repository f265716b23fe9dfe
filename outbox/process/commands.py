"""Runs a command: every error is one line on stderr and the exit code for its kind."""

import io
import logging
import sys
from typing import Any

from outbox.errors import OutboxError
from outbox.process.exits import Exit, exit_code
from outbox.process.output import talk
from outbox.process.waiting import Stopped

logger = logging.getLogger(__name__)


def run_program(app: Any, name: str) -> None:
    """Run a Typer app and end the process with its exit code.

    Args:
        app: what `outbox.process.options.program` returned.
        name: the command's name, which begins what it says.
    """
    talk(name)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without the letters of a topic or key must not end a command.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run(app, name))


def _run(app: Any, name: str) -> int:
    try:
        app(prog_name=name)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else Exit.DONE if end.code is None else Exit.FAILED
    except Stopped:
        return Exit.DONE
    except KeyboardInterrupt:
        logger.error("interrupted")  # noqa: TRY400 - no traceback for that
        return Exit.FAILED
    except OutboxError as error:
        logger.error("%s", error, exc_info=error)  # noqa: TRY400 - the formatter decides about the traceback
        return exit_code(error)
    except Exception as error:
        logger.error("%s: %s (--debug shows where)", type(error).__name__, error, exc_info=error)  # noqa: TRY400
        return Exit.FAILED
    return Exit.DONE
