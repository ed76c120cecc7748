"""Train Dinomaly on the largest q percent of its token distances and evaluate it per domain and condition."""

from entry_points.common import train_variant

if __name__ == "__main__":
    train_variant("topk", doc=__doc__, switches={})
