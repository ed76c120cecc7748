"""Train Dinomaly with horizontal segment dropout on all domains and evaluate it per domain and condition."""

from entry_points.common import start_program, training

COMMAND, main = training("horizontal", __doc__)
start_program(__name__, main)
