"""What a command prints: data on stdout, talk on stderr; one line an event, no passwords."""

import json
import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from outbox.process.passwords import redacted

_LOGGERS = ("outbox", "relay", "inbox")
# A topic, key or foreign message may hold line ends or terminal commands; in a line of ours they are shown, not obeyed.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_LINE_ENDS = re.compile(r"\s*[\r\n\u2028\u2029]\s*")


class Line(logging.Formatter):
    """Formats a log record as one line that shows no password.

    Args:
        program: the command's name, which begins the line.
        debug: tracebacks follow their line.
        times: the line begins with the time in UTC.
    """

    def __init__(self, program: str, *, debug: bool, times: bool) -> None:
        super().__init__()
        self.program, self.debug, self.times = program, debug, times

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback when it was asked for."""
        begin = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime(record.created)) if self.times else ""
        line = f"{begin}{self.program}: {record.levelname.lower()}: {one_line(record.getMessage())}"
        if self.debug and record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redacted(line)


def talk(program: str, *, debug: bool = False, times: bool = False) -> None:
    """Send all logging to stderr as lines of this program; ours from INFO on (DEBUG with `debug`), others' warnings.

    Again: replaces what was set before.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line(program, debug=debug, times=times))
    root = logging.getLogger()
    for old in [found for found in root.handlers if isinstance(found.formatter, Line)]:
        root.removeHandler(old)
    root.addHandler(handler)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)


def one_line(text: str) -> str:
    """Return `text` on one line, its control characters made visible."""
    return _LINE_ENDS.sub(" ", text.strip()).replace("\t", " ").translate(_CONTROLS)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, and flush it."""
    # Escaped to ASCII: keys that are not UTF-8 arrive as lone surrogates, which no encoding takes.
    print_line(json.dumps(value, default=str))


def print_line(line: str) -> None:
    """Print one line of data, and flush it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table for people: a heading, then a line a row, in columns of their own width."""
    cells = [list(columns), *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(columns))]
    for line in cells:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else one_line(str(value))
