"""Train Dinomaly with whole rows of its bottleneck replaced by a learned token."""

import sys
from functools import partial

from entry_points.common import launch, train, variant

COMMAND = variant("row_masking", __doc__)
main = partial(train, COMMAND)

if __name__ == "__main__":
    sys.exit(launch(main))
