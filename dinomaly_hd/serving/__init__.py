"""A finished run's model: on disk, found by any of its names, and as an MLflow model that scores images.

    mlflow models serve -m runs:/ID/model --env-manager local

MLflow loads it through this module, so nothing is pickled, and dinomaly_hd must be installed where the model
is loaded. The encoder's weights come from where the run had them: the installed package, the hub, or the path
in its config. A plugin's variant needs DINOMALY_HD_PLUGIN=FILE.
"""

from pathlib import Path
from typing import Any


def _load_pyfunc(path: str) -> Any:
    """Load the model; the name is MLflow's, and logged models name this module."""
    from dinomaly_hd.plugin import load_named
    from dinomaly_hd.serving.served import ServedModel  # imports mlflow, which takes seconds

    load_named()
    return ServedModel(Path(path))
