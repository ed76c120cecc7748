"""The embedded data set: simulated maps of a gearbox (spec hdmap.md, section 3)."""

from dinomaly_hd.data.simulator.write import FOLDERS, SIZES, Size, simulate, simulate_domain

__all__ = ["FOLDERS", "SIZES", "Size", "simulate", "simulate_domain"]
