"""``python -m dinomaly_hd.condition_files > conditions/schema.json`` writes the schema for editors."""

import sys

from dinomaly_hd.condition_files.schema import schema_text

sys.stdout.write(schema_text())
