"""The promises of reliability, each tried until it would break: a table of N of N.

    python -m benchmarks.reliability --full      # the sizes of the README's table
    python -m benchmarks.reliability             # the sizes that CI runs
    python -m benchmarks.reliability --full --only=2,6,10

Writes benchmarks/results/reliability_{full,fast}.json; with --only what was there of the other rows is kept.
Ends with 1 where a promise did not hold.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.drills.table import DRILLS
from benchmarks.drills.tally import Drill
from dinomaly_hd.files import publish_json, read_json

RESULTS = Path(__file__).parent / "results"
SHOWN_FAILURES = 5


def tried(drill: Drill, *, full: bool) -> dict[str, Any]:
    """Return a drill's row of the table."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        tally = drill.run(Path(folder), full)
    return {
        "promise": drill.promise,
        "held": tally.held,
        "tried": tally.tried,
        "note": tally.note,
        "failures": tally.failures[:SHOWN_FAILURES],
        "seconds": round(time.monotonic() - began, 1),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = ["| # | promise | held | beside | date |", "|---:|---|---:|---|---|"]
    for number in sorted(rows, key=int):
        row = rows[number]
        count = f"{row['held']:,} of {row['tried']:,}"
        lines.append(f"| {number} | {row['promise']} | {count} | {row['note']} | {row['date']} |")
    return "\n".join(lines)


def main() -> None:
    """Try the promises and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="", help="numbers, comma-separated")
    given = parser.parse_args()
    wanted = {int(number) for number in given.only.split(",") if number}
    path = RESULTS / f"reliability_{'full' if given.full else 'fast'}.json"
    rows: dict[str, dict[str, Any]] = {}
    broken = 0
    for drill in DRILLS:
        if wanted and drill.number not in wanted:
            continue
        row = tried(drill, full=given.full)
        # Read anew: another process may have tried other promises meanwhile.
        rows = {**(read_json(path).get("rows", {}) if wanted else rows), str(drill.number): row}
        broken += bool(row["failures"])
        print(f"{drill.number:3} {row['promise']}: {row['held']} of {row['tried']} {row['note']}", flush=True)
        for failure in row["failures"]:
            print(f"      {failure}", flush=True)
        publish_json(path, {"python": platform.python_version(), "rows": rows})
    print(f"\n{table(rows)}\n\nwritten: {path.name}")
    print(json.dumps({"broken": broken}))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
