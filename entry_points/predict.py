"""Score a folder of images with a finished run: scores.csv with decisions, and the highest anomaly maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dinomaly_hd.config.base import Count, Frozen, doc
from dinomaly_hd.config.command import Command, OrAuto
from dinomaly_hd.errors import SignalGuard
from entry_points.common import ROOT, ResultDir, launch, say


class Options(Frozen):
    run: Annotated[
        str,
        Field(
            description="run folder, its name, its MLflow run id, models:/NAME/VERSION, models:/NAME@ALIAS, "
            "or a run's checkpoint (RUN/checkpoints/step_00000400.pt)"
        ),
    ]
    input: Annotated[
        Path, Field(description="folder of .tiff, .tif or .png images, searched recursively, or one image")
    ]
    domain: OrAuto[str] = doc(
        None, "whose threshold decides; auto: the domain folder in a path, or the model's only domain"
    )
    output: OrAuto[Path] = doc(
        None, "new folder for scores.csv and anomaly_maps/; auto: {result_dir}/predict/{time}"
    )
    maps: Count = doc(20, "anomaly maps drawn, of the highest-scoring images")
    gpu: str = doc("auto", "auto, cpu, or the index of a GPU")
    result_dir: ResultDir = Path("results")


COMMAND = Command("predict", __doc__, Options)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    options = COMMAND.parse(argv).options
    from dinomaly_hd.experiments.predict import predict

    given = options.model_dump(exclude={"run", "input"})
    predict(options.run, options.input, root=ROOT, say=say, tick=guard.check, **given)


if __name__ == "__main__":
    raise SystemExit(launch(main))
