"""Train Dinomaly with learned or given weights of its two groups, in loss and score."""

from entry_points.common import launch, training

COMMAND, main = training("scale", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
