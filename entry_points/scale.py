"""Train Dinomaly with learned or given weights of its two groups, in loss and score."""

from entry_points.common import start_main, training

COMMAND, main = training("scale", __doc__)
start_main(__name__, main)
