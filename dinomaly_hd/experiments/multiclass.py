"""Multi-class protocol: one model for all domains, one model a domain, and the two compared by domain."""

from typing import Any

from dinomaly_hd.config import RunConfig, with_values
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.parent import parent_run
from dinomaly_hd.experiments.training_run import Outcome, execute
from dinomaly_hd.files import publish_json

UNIFIED = "multiclass_unified"
METRICS = ("auroc", "tpr_at_fpr_1pct", "tpr_at_fpr_5pct")
MODES = {"multiclass": (True, False), "singleclass": (False, True), "compare": (True, True)}


def run_mode(run: RunConfig, context: Context, *, mode: str) -> None:
    """Run ``multiclass``, ``singleclass`` or ``compare``.

    Raises:
        ConfigError: Unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}: unknown.{nearest(mode, MODES)}")
    if mode == "multiclass":
        execute(run, context)
        return
    unified, single = MODES[mode]
    with parent_run(run, context, kind=mode) as parent:
        members: dict[str, Outcome] = {}
        if unified:
            members[UNIFIED] = execute(run, parent.member(UNIFIED))
        for domain in run.data.domain_names if single else ():
            name = f"singleclass_{domain}"
            members[name] = execute(with_values(run, {"domains": domain}), parent.member(name))
        summary = summarise(members)
        path = parent.folder / "final_summary.json"
        publish_json(path, {"mode": mode, "seed": run.seed, **summary})
        parent.artifact(path)
        parent.metrics(
            {
                f"difference/{domain}/{metric}": value
                for domain, values in summary["difference"].items()
                for metric, value in values.items()
            }
        )
    for line in difference_lines(summary["difference"]):
        context.say(line)


def summarise(members: dict[str, Outcome]) -> dict[str, Any]:
    """Return every member's metrics, and per domain the unified model's less the single model's."""
    table = {
        name: {
            domain: {metric: block[metric] for metric in METRICS}
            for domain, block in member.results["per_domain_metrics"].items()
        }
        for name, member in members.items()
    }
    unified = table.get(UNIFIED, {})
    difference = {
        domain: {metric: unified[domain][metric] - values[metric] for metric in METRICS}
        for name, domains in table.items()
        if name != UNIFIED
        for domain, values in domains.items()
        if domain in unified
    }
    folders = {name: str(member.folder) for name, member in members.items()}
    return {"members": table, "folders": folders, "difference": difference}


def difference_lines(difference: dict[str, dict[str, float]]) -> list[str]:
    """Return the table of differences in percentage points, with what it may be used for."""
    if not difference:
        return []
    lines = ["", "multi-class less single-class, percentage points"]
    lines += [f"{'':12}{'AUROC':>10}{'TPR@FPR 1 %':>14}{'TPR@FPR 5 %':>14}"]
    for domain, values in difference.items():
        lines.append(
            f"{domain:12}"
            + "".join(f"{100 * values[m]:{w}.2f}" for m, w in zip(METRICS, (10, 14, 14), strict=True))
        )
    return [*lines, "one seed: nothing can be concluded from it; repeat with at least three seeds"]
