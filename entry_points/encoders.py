"""Train and compare encoders at equal settings: small, base, large, or any list."""

from dinomaly_hd.config.base import doc
from dinomaly_hd.config.resolve import Names
from dinomaly_hd.errors import ConfigError
from entry_points.common import ConfigOptions, Start, entry_point, launch, of_members

SIZES = {size: f"dinov2reg_vit_{size}_14" for size in ("small", "base", "large")}


class Options(ConfigOptions):
    encoders: Names = doc(
        ("base", "small", "large"),
        "small, base, large (DINOv2 with registers), dinov2reg_vit_..., efficientnet_lite0 or any "
        "timm name; all are compared with the first",
    )


def encoders(start: Start[Options]) -> None:
    options, context = start.options, start.context()
    names = [SIZES.get(name, name) for name in options.encoders]
    if len(set(names)) < len(names):
        raise ConfigError(f"encoders={','.join(names)}: expected each once")
    from dinomaly_hd.experiments.protocols import run_encoders

    run_encoders(
        names,
        options.seeds,
        context,
        build=lambda encoder, seed: start.member(options.config, seed, encoder=encoder),
    )


COMMAND, main = entry_point("encoders", __doc__, Options, encoders, runs=of_members("encoder"))

if __name__ == "__main__":
    raise SystemExit(launch(main))
