"""Train Dinomaly with whole rows of its bottleneck replaced by a learned token."""

from entry_points.common import launch, training

COMMAND, main = training("row_masking", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
