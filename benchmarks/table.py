"""What a person reads, and what a program reads."""

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Row


def conditions(scale: float, server: str) -> dict[str, Any]:
    """Return what the figures depend on, the other work of the machine first."""
    return {
        "load": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "postgresql": server,
        "scale": scale,
    }


def as_data(rows: Sequence[Row], about: dict[str, Any]) -> dict[str, Any]:
    """Return the run as JSON has it."""
    return {"conditions": about, "rows": [asdict(row) for row in rows]}


def show(rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Print the run."""
    console = Console(width=None if os.isatty(1) else 160)
    table = Table(show_lines=True)
    for name in ("", "what", "figure", "limit", "ratio", "bar", "reached"):
        table.add_column(name, justify="right" if name in ("figure", "limit", "ratio") else "left")
    for row in rows:
        table.add_row(row.number, _what(row), row.figure, row.limit, _ratio(row), row.bar, _reached(row))
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in about.items()))


def _what(row: Row) -> str:
    notes = ", ".join(f"{name}: {said}" for name, said in row.notes.items())
    return f"{row.what}\n[dim]{notes}[/dim]" if notes else row.what


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    spread = "" if row.spread is None else f"\n{row.spread[0]:.2f}-{row.spread[1]:.2f}"
    return f"{row.ratio:.2f}{spread}"


def _reached(row: Row) -> str:
    return "" if row.reached is None else "yes" if row.reached else "NO"
