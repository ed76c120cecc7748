"""Train a variant of your own, of a plugin: a Python file as examples/my_variant.py."""

from pathlib import Path

from pydantic import Field

from dinomaly_hd.config.base import doc
from dinomaly_hd.config.presets import any_of
from dinomaly_hd.config.resolve import OrAuto
from dinomaly_hd.config.variants import VARIANTS
from dinomaly_hd.errors import ConfigError, nearest
from entry_points.common import PLUGIN_HELP, Start, TrainingOptions, Work, entry_point, launch, train


class Options(TrainingOptions):
    plugin: Path = Field(description=PLUGIN_HELP)
    variant: OrAuto[str] = doc(None, "which of the plugin's VARIANTS; auto: its first")


def own() -> list[str]:
    return [name for name, make in VARIANTS.items() if make().plugin]


def train_own(start: Start[Options]) -> Work:
    chosen = start.options.variant or next(iter(own()), "")
    if chosen not in own():
        raise ConfigError(f"variant={chosen!r}: the plugin has none of this name.{nearest(chosen, own())}")
    return train(start, chosen)


COMMAND, main = entry_point("variant", __doc__, Options, train_own, runs=lambda: any_of(own() or VARIANTS))

if __name__ == "__main__":
    raise SystemExit(launch(main))
