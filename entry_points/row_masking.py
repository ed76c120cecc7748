"""Train Dinomaly with whole rows of its bottleneck replaced by a learned token."""

from entry_points.common import MODES, launch, variant_main

SWITCHES = MODES
main = variant_main("row_masking", doc=__doc__, switches=SWITCHES)

if __name__ == "__main__":
    launch(main)
