"""Train Dinomaly on token distances that are weighted by their own size."""

import sys
from functools import partial

from entry_points.common import launch, train, variant

COMMAND = variant("focal", __doc__)
main = partial(train, COMMAND)

if __name__ == "__main__":
    sys.exit(launch(main))
