"""Show a run's scores over the time of the maps, with an alarm level for so many false alarms a day."""

from pathlib import Path

from pydantic import Field

from dinomaly_hd.config.base import Positive, doc
from dinomaly_hd.config.resolve import OrAuto
from entry_points.common import ResultOptions, Start, entry_point, launch, say


class Options(ResultOptions):
    run: str = Field(description="run folder, its name, or its MLflow run id; its maps are hdmap's")
    domain: OrAuto[str] = doc(None, "whose maps; auto: the run's only domain")
    score: str = doc("score", "score, or one that needs no network: fm4, na4, rms, kurtosis, max, scan ...")
    false_alarms: Positive = doc(1.0, "a day, that the alarm level may cost")
    data_root: OrAuto[Path] = doc(None, "folder with maps.csv; auto: the run's")
    output: OrAuto[Path] = doc(None, "folder for trend.csv and trend.png; auto: {result_dir}/trend/{time}")


def show(start: Start[Options]) -> None:
    from dinomaly_hd.experiments.trend import trend

    trend(say=say, **start.options.model_dump())


COMMAND, main = entry_point("trend", __doc__, Options, show)

if __name__ == "__main__":
    raise SystemExit(launch(main))
