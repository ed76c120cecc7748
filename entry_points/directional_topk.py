"""Train Dinomaly on the largest q percent of token distances, chosen by their mean along rows."""

from entry_points.common import start_main, training

COMMAND, main = training("directional_topk", __doc__)
start_main(__name__, main)
