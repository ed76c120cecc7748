"""Check the installation, the disk, MLflow's store and a data root: one line each, with the way out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.flag_texts import AUTO, OPTIONS, Option
from entry_points.common import ROOT, feature_place, launch, say

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

FLAGS = {
    "data_root": Option("simulated", "folder with the domain folders, or simulated"),
    "domains": Option("A,B,C,D", "comma-separated"),
    "conditions": Option(AUTO, "auto, halves or none, as in a run"),
    "encoder": Option(AUTO, "whose weights are looked for; auto: the preset's"),
    "encoder_weights": Option(AUTO, "auto, hub, or a file"),
    "preset": OPTIONS["preset"],
    "result_dir": OPTIONS["result_dir"],
    "feature_dir": OPTIONS["feature_dir"],
    "feature_gb": OPTIONS["feature_gb"],
    "experiment": OPTIONS["experiment"],
}
OF_RUN = ("data_root", "domains", "conditions", "encoder", "encoder_weights", "preset")


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Print the findings; a problem ends with the exit code that a run would have."""
    from dinomaly_hd.flags import parse_options, resolve

    values = parse_options("doctor", argv, options=FLAGS, doc=__doc__)
    told = {name: values[name] for name in OF_RUN if values[name] != AUTO}
    run = resolve("baseline", told)
    place = feature_place(values["feature_dir"], values["feature_gb"])
    from dinomaly_hd.experiments.doctor import examine

    examine(
        run,
        root=ROOT,
        result_dir=Path(values["result_dir"]),
        feature_dir=None if place is None else place.folder,
        experiment=values["experiment"],
        say=say,
        tick=guard.check,
    )


if __name__ == "__main__":
    launch(main)
