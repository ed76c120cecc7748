"""Train Dinomaly on token distances that are weighted by their own size."""

from entry_points.common import launch, training

COMMAND, main = training("focal", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
