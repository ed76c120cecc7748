"""The command `dinomaly-hd NAME --flag=value`: every entry point by its name, as in MLproject."""

import importlib
import sys
from collections.abc import Sequence

from dinomaly_hd.config.variants import VARIANTS, WITH_TOPK
from dinomaly_hd.errors import ConfigError, SignalGuard, nearest
from entry_points.common import Work, launch

NAMES = (
    *(name for name in VARIANTS if name not in WITH_TOPK.values()),
    "row_evidence",
    *("single_domain", "multi_domain", "suite", "ablation", "encoders", "steps", "finetune", "tune"),
    *("report", "simulate", "hdmap", "predict", "export", "trend", "sync", "doctor"),
)
HERE = ("runs", "init", "completion")
"""What needs no run in MLflow, and so is not in MLproject."""
USAGE = "usage: dinomaly-hd NAME --flag=value ...   (dinomaly-hd NAME --help)"


def by_name(argv: Sequence[str], guard: SignalGuard) -> Work | None:
    """Start the entry point that the first argument names."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(f"{USAGE}\n\nnames: {', '.join(NAMES)}\nbesides: {', '.join(HERE)}")
        return None
    if name not in (*NAMES, *HERE):
        raise ConfigError(f"no entry point {name!r}.{nearest(name, (*NAMES, *HERE))}")
    work: Work | None = importlib.import_module(f"entry_points.{name}").main(rest, guard)
    return work


def main() -> int:
    """Return the exit code of the entry point that the command line names."""
    return launch(by_name)


if __name__ == "__main__":
    sys.exit(main())
