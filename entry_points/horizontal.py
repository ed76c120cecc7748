"""Train Dinomaly with horizontal segment dropout on all domains and evaluate it per domain and condition."""

from entry_points.common import start_main, training

COMMAND, main = training("horizontal", __doc__)
start_main(__name__, main)
