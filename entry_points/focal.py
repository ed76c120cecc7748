"""Train Dinomaly on token distances that are weighted by their own size."""

from entry_points.common import start_main, training

COMMAND, main = training("focal", __doc__)
start_main(__name__, main)
