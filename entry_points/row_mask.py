"""Train Dinomaly whose decoder attention cannot read its own row nearby."""

from entry_points.common import launch, training

COMMAND, main = training("row_mask", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
