"""Train Dinomaly whose decoder attention cannot read its own row nearby."""

from entry_points.common import MODES, launch, variant_main

SWITCHES = MODES
main = variant_main("row_mask", doc=__doc__, switches=SWITCHES)

if __name__ == "__main__":
    launch(main)
