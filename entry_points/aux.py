"""Train Dinomaly that also learns to tell synthetic bands, and evaluate it per domain and condition."""

from entry_points.common import start_program, training

COMMAND, main = training("aux", __doc__)
start_program(__name__, main)
