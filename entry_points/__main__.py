"""The command `dinomaly-hd NAME --flag=value`: every entry point by its name, as in MLproject."""

import importlib
import sys

from dinomaly_hd.config.variants import VARIANTS, WITH_TOPK
from dinomaly_hd.errors import ConfigError, nearest
from entry_points.common import launch

NAMES = (
    *(name for name in VARIANTS if name not in WITH_TOPK.values()),
    "row_evidence",
    *("single_domain", "multi_domain", "suite", "ablation", "encoders", "steps", "finetune", "tune"),
    *("report", "simulate", "hdmap", "predict", "trend", "sync", "doctor"),
)
USAGE = "usage: dinomaly-hd NAME --flag=value ...   (dinomaly-hd NAME --help)"


def main() -> int:
    """Start the entry point that the first argument names, and return its exit code."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"{USAGE}\n\nnames: {', '.join(NAMES)}")
        return 0
    if name not in NAMES:
        print(f"ConfigError: no entry point {name!r}.{nearest(name, NAMES)}", file=sys.stderr)
        return ConfigError.exit_code
    return launch(importlib.import_module(f"entry_points.{name}").main, rest)


if __name__ == "__main__":
    sys.exit(main())
