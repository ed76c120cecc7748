"""Learn what a band in a row looks like from bands written onto good maps, in seconds (no network)."""

from entry_points.common import launch, training

COMMAND, main = training("row_evidence", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
