"""One file an entry point of MLproject; ``common.py`` holds what they share."""

import importlib.util
import sys

ACTIVATE = "run `make setup` once, then `source .venv/bin/activate`"

if importlib.util.find_spec("pydantic") is None:  # a Python without this project's packages
    print(f"pydantic is not installed for {sys.executable}; {ACTIVATE}", file=sys.stderr)
    sys.exit(70)
