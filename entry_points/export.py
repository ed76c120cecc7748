"""Write a run's detector as one file that others load without this package, proved to score alike."""

from pathlib import Path
from typing import Literal

from dinomaly_hd.config.base import doc
from dinomaly_hd.config.resolve import OrAuto
from entry_points.common import ROOT, ModelOptions, Start, entry_point, launch, say


class Options(ModelOptions):
    format: Literal["onnx", "torch"] = doc(
        "onnx", "onnx (pip install 'dinomaly-hd[export]'), or torch: a program (.pt2) for torch.export.load"
    )
    output: OrAuto[Path] = doc(None, "new folder for the file; auto: {result_dir}/export/{time}")
    images: int = doc(100, "held-out normals that it is proved on, each also with a band", ge=1)
    data_root: OrAuto[Path] = doc(None, "where the data of the run lie now; auto: where they lay")


def write(start: Start[Options]) -> None:
    from dinomaly_hd.experiments.export import export

    given = start.options.model_dump(exclude={"run", "plugin"})
    export(start.options.run, root=ROOT, say=say, tick=start.guard.check, **given)


COMMAND, main = entry_point("export", __doc__, Options, write)

if __name__ == "__main__":
    raise SystemExit(launch(main))
