"""Train and compare encoders at equal settings: small, base, large, or any list."""

from collections.abc import Sequence

from dinomaly_hd.config.base import doc
from dinomaly_hd.config.command import Names
from dinomaly_hd.errors import ConfigError, SignalGuard
from entry_points.common import ConfigOptions, comparison, context_of, launch, member_of

SIZES = {size: f"dinov2reg_vit_{size}_14" for size in ("small", "base", "large")}


class Options(ConfigOptions):
    encoders: Names = doc(
        ("base", "small", "large"),
        "small, base, large (DINOv2 with registers), dinov2reg_vit_..., efficientnet_lite0 or any "
        "timm name; all are compared with the first",
    )


COMMAND = comparison("encoders", __doc__, Options, "encoder")


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    asked = COMMAND.parse(argv)
    options, context = asked.options, context_of(asked, guard)
    encoders = [SIZES.get(name, name) for name in options.encoders]
    if len(set(encoders)) < len(encoders):
        raise ConfigError(f"encoders={','.join(encoders)}: expected each once")
    from dinomaly_hd.experiments.protocols import run_encoders

    run_encoders(
        encoders,
        options.seeds,
        context,
        build=lambda encoder, seed: member_of(asked, options.config, seed, encoder=encoder),
    )


if __name__ == "__main__":
    raise SystemExit(launch(main))
