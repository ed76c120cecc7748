"""Begin a folder of experiments: a conditions file to start from, and what git is to leave out."""

import json
from pathlib import Path

from pydantic import Field

from dinomaly_hd.config.base import Frozen, doc
from dinomaly_hd.config.run import SIMULATED, DataConfig
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.files import publish_text
from entry_points.common import Start, entry_point, first_word_as, say

CONDITIONS, IGNORED = "conditions.yaml", ".gitignore"
LEFT_OUT = "results/\ndata/\n.features/\nmlartifacts/\nmlruns/\nmlflow.db*\noptuna.db*\n"
SUITE = f"dinomaly-hd suite --conditions_file {CONDITIONS} --seeds 42,43,44"
TEXT = """\
# What is tried here: each condition is one experiment, trained with every seed, and all are compared with the
# first. A config takes what stands under model, encoder, data and training of
# `dinomaly-hd horizontal --help-all`, as `name: value`. To start, in this folder:
#   dinomaly-hd doctor --data_root {root}
#   {suite}
#   dinomaly-hd runs
experiment_conditions:
  - name: row_evidence
    description: "no network: what a network has to beat"
    config: {{model_type: row_evidence, domains: {domains}, data_root: {root}}}
  - name: baseline
    description: "Dinomaly as published"
    config: {{model_type: dinomaly, variant: baseline, domains: {domains}, data_root: {root}}}
  - name: horizontal
    description: "one idea: horizontal segment dropout"
    config:
      model_type: dinomaly
      variant: horizontal
      domains: {domains}
      data_root: {root}
      row_p: 0.2          # share of rows that lose a segment
      # max_steps: 1000   # else the preset's
"""


class Options(Frozen):
    folder: Path = Field(description="folder to begin, made where it is not there")
    data_root: str = doc(SIMULATED, "folder of your maps, whose domains are written down, or simulated")


def begin(start: Start[Options]) -> None:
    folder, root, domains = start.options.folder, start.options.data_root, DataConfig().domain_names
    if (folder / CONDITIONS).exists():
        raise ConfigError(f"{folder / CONDITIONS} is there already; choose another folder, or remove it")
    if root != SIMULATED:
        from dinomaly_hd.data.tree import found_domains  # with numpy

        root = str(Path(root).expanduser().resolve())
        domains = found_domains(Path(root), usual=domains)
        if not domains:
            raise ConfigError(f"data_root={root}: no domains there; ask doctor with the same data_root")
    told = {"domains": json.dumps(domains), "root": json.dumps(root), "suite": SUITE}
    publish_text(folder / CONDITIONS, TEXT.format(**told))
    if not (folder / IGNORED).exists():
        publish_text(folder / IGNORED, LEFT_OUT)
    say(f"{folder / CONDITIONS}: look at it, then\n\n    cd {folder}\n    {SUITE}")


COMMAND, MAIN = entry_point("init", __doc__, Options, begin)
main = first_word_as("folder", MAIN)
