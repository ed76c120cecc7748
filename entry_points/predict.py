"""Score a folder of images with a finished run: scores.csv with decisions, and the highest anomaly maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from dinomaly_hd.config.base import Count, Frozen, doc
from dinomaly_hd.config.command import Command, OrAuto
from dinomaly_hd.training.signals import SignalGuard
from entry_points.common import ROOT, ResultDir, launch, say


class Options(Frozen):
    run: Annotated[
        str,
        doc(
            "run folder, its name, its MLflow run id, models:/NAME/VERSION, models:/NAME@ALIAS, or a "
            "run's checkpoint (RUN/checkpoints/step_00000400.pt)"
        ),
    ]
    input: Annotated[Path, doc("folder of .tiff, .tif or .png images, searched recursively, or one image")]
    domain: Annotated[
        OrAuto[str],
        doc("whose threshold decides; auto: the domain folder in a path, or the model's only domain"),
    ] = None
    output: Annotated[
        OrAuto[Path], doc("new folder for scores.csv and anomaly_maps/; auto: {result_dir}/predict/{time}")
    ] = None
    maps: Annotated[Count, doc("anomaly maps drawn, of the highest-scoring images")] = 20
    gpu: Annotated[str, doc("auto, cpu, or the index of a GPU")] = "auto"
    result_dir: ResultDir = Path("results")


COMMAND = Command("predict", __doc__, Options)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    options = COMMAND.parse(argv).options
    from dinomaly_hd.experiments.predict import predict

    given = options.model_dump(exclude={"run", "input"})
    predict(options.run, options.input, root=ROOT, say=say, tick=guard.check, **given)


if __name__ == "__main__":
    raise SystemExit(launch(main))
