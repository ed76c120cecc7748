"""Train Dinomaly on the largest q percent of token distances, chosen by their mean along rows."""

from entry_points.common import MODES, launch, variant_main

SWITCHES = MODES
main = variant_main("directional_topk", doc=__doc__, switches=SWITCHES)

if __name__ == "__main__":
    launch(main)
