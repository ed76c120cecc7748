"""Train Dinomaly with horizontal segment dropout inside the decoder's attention."""

import sys
from functools import partial

from entry_points.common import launch, train, variant

COMMAND = variant("decoder_dropout", __doc__)
main = partial(train, COMMAND)

if __name__ == "__main__":
    sys.exit(launch(main))
