"""Score a folder of images with a finished run: scores.csv with decisions, and the highest anomaly maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.flag_texts import AUTO, Option
from entry_points.common import ROOT, launch, say

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

FLAGS = {
    "run": Option(
        "",
        "run folder, its name, its MLflow run id, models:/NAME/VERSION, models:/NAME@ALIAS, or a run's "
        "checkpoint (RUN/checkpoints/step_00000400.pt)",
    ),
    "input": Option("", "folder of .tiff, .tif or .png images, searched recursively, or one image"),
    "domain": Option(
        AUTO, "whose threshold decides; auto: the domain folder in a path, or the model's only domain"
    ),
    "output": Option(AUTO, "new folder for scores.csv and anomaly_maps/; auto: {result_dir}/predict/{time}"),
    "maps": Option("20", "anomaly maps drawn, of the highest-scoring images"),
    "gpu": Option(AUTO, "auto, cpu, or the index of a GPU"),
    "result_dir": Option("results", "folder of all run folders"),
}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Score and say where the results are."""
    from dinomaly_hd.errors import ConfigError
    from dinomaly_hd.flags import parse_options

    values = parse_options("predict", argv, options=FLAGS, doc=__doc__)
    if not values["maps"].isdecimal():
        raise ConfigError(f"maps={values['maps']!r}: expected a whole number, 0 or more")
    from dinomaly_hd.experiments.predict import predict

    predict(
        values["run"],
        Path(values["input"]),
        domain=None if values["domain"] == AUTO else values["domain"],
        output=None if values["output"] == AUTO else Path(values["output"]),
        maps=int(values["maps"]),
        gpu=values["gpu"],
        result_dir=Path(values["result_dir"]),
        root=ROOT,
        say=say,
        tick=guard.check,
    )


if __name__ == "__main__":
    launch(main)
