"""Train Dinomaly on the largest q percent of its token distances and evaluate it per domain and condition."""

from entry_points.common import MODES, launch, variant_main

SWITCHES = MODES
main = variant_main("topk", doc=__doc__, switches=SWITCHES)

if __name__ == "__main__":
    launch(main)
