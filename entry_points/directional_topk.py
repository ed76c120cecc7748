"""Train Dinomaly on the largest q percent of token distances, chosen by their mean along rows."""

from entry_points.common import launch, training

COMMAND, main = training("directional_topk", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
