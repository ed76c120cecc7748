"""Train and compare encoders at equal settings: small, base, large, or any list."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinomaly_hd.config import names_in
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.flag_texts import Option
from entry_points.common import launch
from entry_points.comparisons import CONFIG, SEEDS, prepare_variants

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

SIZES = {size: f"dinov2reg_vit_{size}_14" for size in ("small", "base", "large")}
WITHOUT = ("encoder",)
SWITCHES = {
    "encoders": Option(
        "base,small,large",
        "small, base, large (DINOv2 with registers), dinov2reg_vit_..., efficientnet_lite0 or any timm name; "
        "all are compared with the first",
    ),
    "config": CONFIG,
    "seeds": SEEDS,
}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Run the comparison of encoders."""
    build, seeds, context, switches, _ = prepare_variants(
        "encoders", argv, guard, doc=__doc__, switches=SWITCHES, without=WITHOUT
    )
    encoders = [SIZES.get(name, name) for name in names_in(switches["encoders"])]
    if not encoders or len(set(encoders)) < len(encoders):
        raise ConfigError(f"encoders={switches['encoders']!r}: expected one or more, each once")
    from dinomaly_hd.experiments.protocols import run_encoders

    run_encoders(
        encoders,
        seeds,
        context,
        build=lambda encoder, seed: build(switches["config"], seed, {"encoder": encoder}),
    )


if __name__ == "__main__":
    launch(main)
