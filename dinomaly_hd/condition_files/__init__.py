"""Conditions files: many experiments in one file, in the authors' own keys (spec/protocols.md)."""

from dinomaly_hd.condition_files.keys import FAMILIES, KEYS
from dinomaly_hd.condition_files.reading import read_plain
from dinomaly_hd.condition_files.schema import schema_text
from dinomaly_hd.condition_files.translation import Condition, read_conditions

__all__ = ["FAMILIES", "KEYS", "Condition", "read_conditions", "read_plain", "schema_text"]
