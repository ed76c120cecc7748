"""Train the original Dinomaly on all domains and evaluate it per domain and condition."""

import sys
from functools import partial

from entry_points.common import launch, train, variant

COMMAND = variant("baseline", __doc__)
main = partial(train, COMMAND)

if __name__ == "__main__":
    sys.exit(launch(main))
