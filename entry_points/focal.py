"""Train Dinomaly on token distances that are weighted by their own size."""

from entry_points.common import start_program, training

COMMAND, main = training("focal", __doc__)
start_program(__name__, main)
