"""Train Dinomaly with a generalised mean over its two groups, in loss and score."""

import sys
from functools import partial

from entry_points.common import launch, train, variant

COMMAND = variant("gem", __doc__)
main = partial(train, COMMAND)

if __name__ == "__main__":
    sys.exit(launch(main))
