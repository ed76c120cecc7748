"""From a run's config to its detector: a family is a row of each table here."""

from collections.abc import Callable

from torch import Tensor

from dinomaly_hd.config import RunConfig
from dinomaly_hd.models import build_dinomaly, build_families
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.weights import Weights

CHECKS: dict[str, Callable[[RunConfig], None]] = {
    "dinomaly": build_dinomaly.check,
    "patchcore": build_families.check_patchcore,
    "draem": build_families.check_draem,
    "draem_sevnet": build_families.check_draem,
    "trivial": build_families.check_trivial,
}
BUILDERS: dict[str, Callable[[RunConfig, Weights, Tensor | None], Detector]] = {
    "dinomaly": build_dinomaly.build,
    "patchcore": build_families.build_patchcore,
    "draem": build_families.build_draem,
    "draem_sevnet": build_families.build_sevnet,
    "trivial": build_families.build_trivial,
}


def check_model(run: RunConfig) -> None:
    """Refuse a model whose settings do not fit each other, before any weights are loaded.

    Raises:
        ConfigError: Names the setting.
    """
    CHECKS[run.model.model_type](run)


def build_detector(run: RunConfig, *, weights: Weights, textures_KHW: Tensor | None = None) -> Detector:
    """Return the detector of a run; what is trained starts where the seed says.

    ``textures_KHW`` are the user's, where the run names a folder (``texture_folder``) and is to be trained.
    """
    return BUILDERS[run.model.model_type](run, weights, textures_KHW)
