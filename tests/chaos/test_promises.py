"""Every promise of reliability in its fast size; `python -m benchmarks.reliability --full` has the full."""

from pathlib import Path

import pytest

from benchmarks.drills import Drill
from benchmarks.reliability import DRILLS


@pytest.mark.slow
@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: f"{drill.number}-{drill.promise}")
def test_promise_holds(drill: Drill, tmp_path: Path) -> None:
    tally = drill.run(tmp_path, False)
    print(f"{tally.held} of {tally.tried} {tally.note}")
    assert tally.tried
    assert not tally.failures, "\n".join(tally.failures)
