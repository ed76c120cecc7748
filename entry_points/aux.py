"""Train Dinomaly that also learns to tell synthetic bands, and evaluate it per domain and condition."""

from entry_points.common import start_main, training

COMMAND, main = training("aux", __doc__)
start_main(__name__, main)
