"""Train Dinomaly with a generalised mean over its two groups, in loss and score."""

from entry_points.common import start_main, training

COMMAND, main = training("gem", __doc__)
start_main(__name__, main)
