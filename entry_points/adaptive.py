"""Train Dinomaly with a discard rate that follows each map's angular power entropy."""

from entry_points.common import launch, training

COMMAND, main = training("adaptive", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
