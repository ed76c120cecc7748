"""Check the installation, the disk, MLflow's store and a data root: one line each, with the way out."""

from collections.abc import Sequence

from dinomaly_hd.config.command import Command
from dinomaly_hd.config.parameters import Fields, parameters
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.errors import UnfitError
from dinomaly_hd.training.guards import SignalGuard
from entry_points.common import ROOT, FeatureOptions, feature_place, launch, say

OF_RUN = ("preset", "data_root", "domains", "conditions", "encoder", "encoder_weights")


def _fields() -> Fields:
    return {name: parameters("baseline")[name] for name in OF_RUN}


COMMAND = Command("doctor", __doc__, FeatureOptions, runs=_fields)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    asked = COMMAND.parse(argv)
    run, place = resolve_model("baseline", asked.values), feature_place(asked.options)
    from dinomaly_hd.experiments.doctor import BAD, Patient, examine

    patient = Patient(
        root=ROOT,
        result_dir=asked.options.result_dir,
        feature_dir=None if place is None else place.folder,
        experiment=asked.options.experiment,
        data=run.data,
        encoder=run.encoder.encoder,
        encoder_weights=run.encoder.encoder_weights,
    )
    problems = []
    for finding in examine(patient, tick=guard.check):
        say(finding.line())
        problems += [finding] if finding.state == BAD else []
    if problems:
        raise UnfitError(f"{len(problems)} of the lines above need mending", code=problems[0].exit_code)


if __name__ == "__main__":
    raise SystemExit(launch(main))
