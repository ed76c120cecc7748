"""Configs: what a run is, frozen, unknown keys refused."""

from dinomaly_hd.config.base import *  # noqa: F403
from dinomaly_hd.config.dinomaly import *  # noqa: F403
from dinomaly_hd.config.families import *  # noqa: F403
from dinomaly_hd.config.run import *  # noqa: F403
