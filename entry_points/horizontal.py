"""Train Dinomaly with horizontal segment dropout on all domains and evaluate it per domain and condition."""

from entry_points.common import train_variant

SWITCHES = {"use_topk": "true: with the TopK loss (config F)"}

if __name__ == "__main__":
    train_variant("horizontal", doc=__doc__, switches=SWITCHES)
