"""Train Dinomaly with a discard rate that follows each map's angular power entropy."""

from entry_points.common import start_main, training

COMMAND, main = training("adaptive", __doc__)
start_main(__name__, main)
