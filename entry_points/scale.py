"""Train Dinomaly with learned or given weights of its two groups, in loss and score."""

from entry_points.common import MODES, launch, variant_main

SWITCHES = MODES
main = variant_main("scale", doc=__doc__, switches=SWITCHES)

if __name__ == "__main__":
    launch(main)
