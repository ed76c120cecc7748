"""Anomaly detection in Health Data Maps: ``import dinomaly_hd as dhd``; docs/python.md shows it at work."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinomaly_hd.estimators import RowEvidence as RowEvidence
    from dinomaly_hd.estimators import Scan as Scan
    from dinomaly_hd.workbench import Maps as Maps
    from dinomaly_hd.workbench import Report as Report
    from dinomaly_hd.workbench import Run as Run
    from dinomaly_hd.workbench import compare as compare
    from dinomaly_hd.workbench import load as load
    from dinomaly_hd.workbench import read as read
    from dinomaly_hd.workbench import simulate as simulate
    from dinomaly_hd.workbench import train as train

_PLACES = {
    **dict.fromkeys(("Maps", "Report", "Run", "compare", "load", "read", "simulate", "train"), "workbench"),
    **dict.fromkeys(("RowEvidence", "Scan"), "estimators"),
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Import what is asked for: torch and MLflow take seconds, which `import dinomaly_hd` need not."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
