"""Train Dinomaly with a discard rate that follows each map's angular power entropy."""

from entry_points.common import MODES, launch, variant_main

SWITCHES = MODES
main = variant_main("adaptive", doc=__doc__, switches=SWITCHES)

if __name__ == "__main__":
    launch(main)
