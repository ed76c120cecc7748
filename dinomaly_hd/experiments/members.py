"""Finished runs as members of a comparison: read from their folders, or from MLflow where those are gone."""

from pathlib import Path

import pandas as pd

from dinomaly_hd.errors import DataError
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.experiments.run_folder import RESULTS, read_results

SCORES = "scores"


def read_member(folder: Path, *, label: str | None = None, name: str | None = None) -> MemberRun:
    """Read a finished run.

    Args:
        folder: With results.json and scores/.
        label: What it is called in the comparison; None takes what the run was called in its own.
        name: For messages; None takes the folder.

    Raises:
        DataError: The folder holds no finished run.
    """
    result = read_results(folder)
    if result is None or not {"seed", "domains", "per_domain_metrics"} <= result.keys():
        raise DataError(f"{name or folder}: holds no readable {RESULTS}; the run did not finish")
    tables = []
    for domain in result["domains"]:
        path = folder / SCORES / f"{domain}.csv"
        try:
            tables.append(pd.read_csv(path).assign(domain=domain))
        except (OSError, ValueError) as error:
            raise DataError(f"{name or folder}: {path.name} cannot be read: {error}") from error
    label = label or str(result.get("label") or result.get("variant"))
    return MemberRun(label, int(result["seed"]), name or str(folder), result, pd.concat(tables))
