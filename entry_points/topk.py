"""Train Dinomaly on the largest q percent of its token distances and evaluate it per domain and condition."""

from entry_points.common import start_main, training

COMMAND, main = training("topk", __doc__)
start_main(__name__, main)
