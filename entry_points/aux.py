"""Train Dinomaly that also learns to tell synthetic bands, and evaluate it per domain and condition."""

from entry_points.common import launch, training

COMMAND, main = training("aux", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
