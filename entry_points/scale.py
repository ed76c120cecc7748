"""Train Dinomaly with learned or given weights of its two groups, in loss and score."""

from entry_points.common import start_program, training

COMMAND, main = training("scale", __doc__)
start_program(__name__, main)
