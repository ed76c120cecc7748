"""Train Dinomaly whose decoder attention cannot read its own row nearby."""

import sys
from functools import partial

from entry_points.common import launch, train, variant

COMMAND = variant("row_mask", __doc__)
main = partial(train, COMMAND)

if __name__ == "__main__":
    sys.exit(launch(main))
