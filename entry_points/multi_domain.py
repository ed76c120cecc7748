"""Train on one source domain and test it on the others, with any model family."""

from entry_points.common import launch
from entry_points.families import TransferOptions, single_source

COMMAND, main = single_source("multi_domain", __doc__, TransferOptions)

if __name__ == "__main__":
    raise SystemExit(launch(main))
