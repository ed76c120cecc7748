"""Whether the fast drills notice when a guard is gone: each is taken out of a copy and its drill must fail.

    python -m benchmarks.mutations               # all of mutations.toml; about half an hour on two cores
    python -m benchmarks.mutations --only=2,6

Prints the table of CONTRIBUTING.md. Ends with 1 where a drill did not notice.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, given, numbers, table

COPIED = ("dinomaly_hd", "entry_points", "benchmarks", "tests", "conditions")
FILES = ("pyproject.toml", "MLproject", "conda.yaml", "requirements.lock")
TEST = "tests/chaos/test_promises.py"
LONGEST_S = 3600


def noticed(mutation: dict[str, Any]) -> bool:
    """Return whether the promise's fast drill fails on a copy without the guard."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        copy = Path(name)
        for folder in COPIED:
            left_out = shutil.ignore_patterns("__pycache__", "output")
            shutil.copytree(ROOT / folder, copy / folder, ignore=left_out)
        for file in FILES:
            shutil.copy(ROOT / file, copy / file)
        path, old = copy / mutation["file"], mutation["old"]
        text = path.read_text()
        assert text.count(old) == 1, f"{mutation['file']} has {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, mutation["new"]))
        # The installed package is this checkout's: the copy must come before it.
        environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", TEST]
        command += ["-k", f"[{mutation['promise']}-"]
        try:
            done = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LONGEST_S
            )
        except subprocess.TimeoutExpired:
            return True
        assert done.returncode in (0, 1), f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}"
        return done.returncode == 1


def main() -> None:
    wanted = numbers(given(__doc__, only="").only)
    rows = []
    for mutation in tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["guard"]:
        number = mutation["promise"]
        if wanted and number not in wanted:
            continue
        result = f"`{TEST}` [{number}] fails" if noticed(mutation) else "NOT NOTICED"
        row = {"#": number, "guard": mutation["guard"], "in": f"`{mutation['file']}`", "without it": result}
        rows.append(row)
        print(*row.values(), sep="; ", flush=True)
    print(f"\n{table(rows)}")
    sys.exit(any(row["without it"] == "NOT NOTICED" for row in rows))


if __name__ == "__main__":
    main()
