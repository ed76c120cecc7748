"""Train Dinomaly on the largest q percent of token distances, chosen by their mean along rows."""

import sys
from functools import partial

from entry_points.common import launch, train, variant

COMMAND = variant("directional_topk", __doc__)
main = partial(train, COMMAND)

if __name__ == "__main__":
    sys.exit(launch(main))
