"""Check the installation, the disk, MLflow's store and a data root: one line each, with the way out."""

from dinomaly_hd.config.presets import Fields, parameters
from dinomaly_hd.config.resolve import resolve_model
from entry_points.common import ROOT, FeatureOptions, Start, entry_point, launch, say

OF_RUN = ("preset", "data_root", "domains", "conditions", "grey", "encoder", "encoder_weights")


def fields() -> Fields:
    return {name: parameters("baseline")[name] for name in OF_RUN}


def doctor(start: Start[FeatureOptions]) -> None:
    run, options = resolve_model("baseline", start.asked.values), start.options
    from dinomaly_hd.experiments.doctor import examine

    examine(
        run,
        root=ROOT,
        result_dir=options.result_dir,
        feature_dir=options.feature_place.folder if options.feature_place else None,
        experiment=options.experiment,
        say=say,
        tick=start.guard.check,
    )


COMMAND, main = entry_point("doctor", __doc__, FeatureOptions, doctor, runs=fields)

if __name__ == "__main__":
    raise SystemExit(launch(main))
