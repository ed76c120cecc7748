"""Train Dinomaly with horizontal segment dropout on all domains and evaluate it per domain and condition."""

from dinomaly_hd.flag_texts import Option
from entry_points.common import MODES, launch, variant_main

SWITCHES = {"use_topk": Option("false", "true: with the TopK loss (config F)"), **MODES}
main = variant_main("horizontal", doc=__doc__, switches=SWITCHES)

if __name__ == "__main__":
    launch(main)
