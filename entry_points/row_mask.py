"""Train Dinomaly whose decoder attention cannot read its own row nearby."""

from entry_points.common import start_main, training

COMMAND, main = training("row_mask", __doc__)
start_main(__name__, main)
