"""Train Dinomaly with horizontal segment dropout on all domains and evaluate it per domain and condition."""

from entry_points.common import launch, training

COMMAND, main = training("horizontal", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
