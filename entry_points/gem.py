"""Train Dinomaly with a generalised mean over its two groups, in loss and score."""

from entry_points.common import launch, training

COMMAND, main = training("gem", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
