"""Train Dinomaly on the largest q percent of its token distances and evaluate it per domain and condition."""

from entry_points.common import launch, training

COMMAND, main = training("topk", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
