"""Train Dinomaly with horizontal segment dropout inside the decoder's attention."""

from entry_points.common import MODES, launch, variant_main

SWITCHES = MODES
main = variant_main("decoder_dropout", doc=__doc__, switches=SWITCHES)

if __name__ == "__main__":
    launch(main)
