"""Train Dinomaly with whole rows of its bottleneck replaced by a learned token."""

from entry_points.common import start_main, training

COMMAND, main = training("row_masking", __doc__)
start_main(__name__, main)
