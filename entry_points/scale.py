"""Train Dinomaly with learned or given weights of its two groups, in loss and score."""

import sys
from functools import partial

from entry_points.common import launch, train, variant

COMMAND = variant("scale", __doc__)
main = partial(train, COMMAND)

if __name__ == "__main__":
    sys.exit(launch(main))
