"""Train Dinomaly with a discard rate that follows each map's angular power entropy."""

import sys
from functools import partial

from entry_points.common import launch, train, variant

COMMAND = variant("adaptive", __doc__)
main = partial(train, COMMAND)

if __name__ == "__main__":
    sys.exit(launch(main))
