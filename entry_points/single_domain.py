"""Train and test one domain with any model family; several models, domains or seeds are compared."""

from entry_points.common import launch
from entry_points.families import FamilyOptions, single_source

COMMAND, main = single_source("single_domain", __doc__, FamilyOptions, domains="source_domain")

if __name__ == "__main__":
    raise SystemExit(launch(main))
