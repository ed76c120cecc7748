"""The promises of reliability, each tried until it would break: a table of N of N.

    python -m benchmarks.reliability --full      # the sizes of docs/reliability.md
    python -m benchmarks.reliability             # the sizes that CI runs
    python -m benchmarks.reliability --full --only=2,6,10

Writes benchmarks/results/reliability_{full,fast}.json; with --only what was there of the other rows is kept.
Ends with 1 where a promise did not hold.
"""

import platform
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, given, numbers, record, table, timed
from benchmarks.drills import Drill
from dinomaly_hd.files import read_json

MODULES = (
    *("kills", "checkpoints", "images", "folders", "metrics", "tracking", "studies"),
    *("poison", "hostile", "typos", "order", "memory"),
)
DRILLS: list[Drill] = sorted(
    (drill for name in MODULES for drill in import_module(f"benchmarks.drills.{name}").DRILLS),
    key=lambda drill: drill.number,
)
SHOWN_FAILURES = 5


def tried(drill: Drill, folder: Path, *, full: bool) -> dict[str, Any]:
    folder.mkdir()
    seconds, tally = timed(lambda: drill.run(folder, full))
    shutil.rmtree(folder)
    return {
        "promise": drill.promise,
        "held": tally.held,
        "tried": tally.tried,
        "note": tally.note,
        "failures": tally.failures[:SHOWN_FAILURES],
        "seconds": round(seconds, 1),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def main() -> None:
    told = given(__doc__, full=False, only="")
    wanted, name = numbers(told.only), f"reliability_{'full' if told.full else 'fast'}"
    rows: dict[str, dict[str, Any]] = {}
    broken = 0
    with tempfile.TemporaryDirectory(prefix="drills-") as place:  # which share a run that nothing disturbed
        for drill in DRILLS:
            if wanted and drill.number not in wanted:
                continue
            row = tried(drill, Path(place) / f"drill{drill.number}", full=told.full)
            # Read anew: another process may have tried other promises meanwhile.
            before = read_json(RESULTS / f"{name}.json").get("rows", {}) if wanted else rows
            rows = {**before, str(drill.number): row}
            broken += bool(row["failures"])
            count = f"{row['held']} of {row['tried']}"
            print(f"{drill.number:3} {row['promise']}: {count} {row['note']}", flush=True)
            print("".join(f"      {failure}\n" for failure in row["failures"]), end="", flush=True)
            record(name, {"python": platform.python_version(), "rows": rows}, show=False)
    shown = [
        {"#": number, "promise": row["promise"], "held": f"{row['held']:,} of {row['tried']:,}"}
        | {"beside": row["note"], "date": row["date"]}
        for number, row in sorted(rows.items(), key=lambda item: int(item[0]))
    ]
    print(f"\n{table(shown)}\n\nwritten: {name}.json; {broken} broken")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
