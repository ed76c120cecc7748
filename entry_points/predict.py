"""Score a folder of images with a finished run: scores.csv with decisions, and the highest anomaly maps."""

from pathlib import Path

from pydantic import Field

from dinomaly_hd.config.base import Count, doc
from dinomaly_hd.config.resolve import OrAuto
from dinomaly_hd.config.run import Device
from entry_points.common import ROOT, ModelOptions, Start, entry_point, launch, say


class Options(ModelOptions):
    input: Path = Field(description="folder of .tiff, .tif, .png images, searched recursively, or one image")
    domain: OrAuto[str] = doc(
        None, "whose threshold decides; auto: the domain folder in a path, or the model's only domain"
    )
    output: OrAuto[Path] = doc(
        None, "new folder for scores and anomaly maps; auto: {result_dir}/predict/{time}"
    )
    maps: Count = doc(20, "anomaly maps drawn, of the highest-scoring images")
    gpu: Device = "auto"


def score(start: Start[Options]) -> None:
    options = start.options
    from dinomaly_hd.experiments.predict import predict

    given = options.model_dump(exclude={"run", "input", "plugin"})
    predict(options.run, options.input, root=ROOT, say=say, tick=start.guard.check, **given)


COMMAND, main = entry_point("predict", __doc__, Options, score)

if __name__ == "__main__":
    raise SystemExit(launch(main))
