"""Learn what a band in a row looks like from bands written onto good maps, in seconds (no network)."""

from entry_points.common import start_main, training

COMMAND, main = training("row_evidence", __doc__)
start_main(__name__, main)
