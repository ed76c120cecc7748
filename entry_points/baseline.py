"""Train the original Dinomaly on all domains and evaluate it per domain and condition."""

from entry_points.common import start_program, training

COMMAND, main = training("baseline", __doc__)
start_program(__name__, main)
