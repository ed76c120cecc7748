"""Check the installation, the disk, MLflow's store and a data root: one line each, with the way out."""

from collections.abc import Sequence

from dinomaly_hd.config.command import Command
from dinomaly_hd.config.parameters import Fields, parameters
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.errors import SignalGuard
from entry_points.common import ROOT, FeatureOptions, feature_place, launch, say

OF_RUN = ("preset", "data_root", "domains", "conditions", "encoder", "encoder_weights")


def _fields() -> Fields:
    return {name: parameters("baseline")[name] for name in OF_RUN}


COMMAND = Command("doctor", __doc__, FeatureOptions, runs=_fields)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    asked = COMMAND.parse(argv)
    run, place = resolve_model("baseline", asked.values), feature_place(asked.options)
    from dinomaly_hd.experiments.doctor import examine

    examine(
        run,
        root=ROOT,
        result_dir=asked.options.result_dir,
        feature_dir=None if place is None else place.folder,
        experiment=asked.options.experiment,
        say=say,
        tick=guard.check,
    )


if __name__ == "__main__":
    raise SystemExit(launch(main))
