"""Train Dinomaly with horizontal segment dropout inside the decoder's attention."""

from entry_points.common import launch, training

COMMAND, main = training("decoder_dropout", __doc__)

if __name__ == "__main__":
    raise SystemExit(launch(main))
