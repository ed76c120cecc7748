"""Train Dinomaly with horizontal segment dropout inside the decoder's attention."""

from entry_points.common import start_main, training

COMMAND, main = training("decoder_dropout", __doc__)
start_main(__name__, main)
