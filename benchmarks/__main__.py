"""Measures what is asked for, and prints a table; see `benchmarks`."""

import argparse
import json
import signal
import sys

from benchmarks.ground import SETTINGS, Ground
from benchmarks.handling import p4
from benchmarks.latency import p5
from benchmarks.measuring import Row
from benchmarks.memory import p6
from benchmarks.moving import p2, p7
from benchmarks.producing import p1_and_p8
from benchmarks.retention import retention
from benchmarks.table import as_data, conditions, show
from benchmarks.writing import p3

PARTS = {
    "P1": p1_and_p8,
    "P2": p2,
    "P3": p3,
    "P4": p4,
    "P5": p5,
    "P6": p6,
    "P7": p7,
    "P8": p1_and_p8,
    "RETENTION": retention,
}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--scale", type=float, default=0.1, help="1 is a million messages (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each side (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args()
    unknown = [part for part in chosen.parts if part.upper() not in PARTS]
    if unknown or chosen.scale <= 0 or chosen.rounds < 1:
        parser.error(f"unknown part {', '.join(unknown)}" if unknown else "--scale and --rounds have to be positive")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server must not outlive a run that is stopped
    rows: list[Row] = []
    with Ground() as ground:
        about = {**conditions(chosen.scale, ground.version()), **SETTINGS}
        for measure in dict.fromkeys(PARTS[part.upper()] for part in chosen.parts or PARTS):
            for row in measure(ground, chosen.scale, chosen.rounds):
                rows.append(row)
                print(f"{row.number:3} {row.what}: {row.figure}", file=sys.stderr, flush=True)
    if chosen.json:
        print(json.dumps(as_data(rows, about), indent=2))
    else:
        show(rows, about)


if __name__ == "__main__":
    main()
