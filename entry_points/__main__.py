"""The command `dinomaly-hd NAME --flag=value`: every entry point by its name, as in MLproject."""

import importlib
import sys

from entry_points.common import launch

USAGE = "usage: dinomaly-hd NAME --flag=value ...   (dinomaly-hd NAME --help)"


def main() -> None:
    """Start the entry point that the first argument names."""
    from dinomaly_hd.errors import ConfigError, nearest
    from entry_points.project_file import NAMES

    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"{USAGE}\n\nnames: {', '.join(NAMES)}")
        sys.exit(0)
    if name not in NAMES:
        print(f"ConfigError: no entry point {name!r}.{nearest(name, NAMES)}", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    sys.argv = [f"dinomaly-hd {name}", *rest]
    launch(importlib.import_module(f"entry_points.{name}").main)


if __name__ == "__main__":
    main()
