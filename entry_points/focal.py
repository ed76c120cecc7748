"""Train Dinomaly on token distances that are weighted by their own size."""

from entry_points.common import MODES, launch, variant_main

SWITCHES = MODES
main = variant_main("focal", doc=__doc__, switches=SWITCHES)

if __name__ == "__main__":
    launch(main)
