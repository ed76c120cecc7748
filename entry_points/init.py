"""Begin a folder of experiments: a conditions file to start from, and what git is to leave out."""

import json
from pathlib import Path

from pydantic import Field

from dinomaly_hd.config.base import Frozen, doc
from dinomaly_hd.config.run import SIMULATED, DataConfig
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.files import publish_text
from entry_points.common import Start, entry_point, first_word_as, launch, say

CONDITIONS, IGNORED = "conditions.yaml", ".gitignore"
TEXT = """\
# What is tried here: each condition is one experiment, trained with every seed, and all are compared with the
# first. A config takes whatever stands under model, encoder, data and training of
# `dinomaly-hd horizontal --help-all`, as `name: value`. Start with:
#   dinomaly-hd doctor --data_root ROOT
#   dinomaly-hd suite --conditions_file conditions.yaml --seeds 42,43,44
#   dinomaly-hd runs
experiment_conditions:
  - name: row_evidence
    description: "no network: what a network has to beat"
    config:
      model_type: row_evidence
      domains: DOMAINS
      data_root: ROOT
  - name: baseline
    description: "Dinomaly as published"
    config:
      model_type: dinomaly
      variant: baseline
      domains: DOMAINS
      data_root: ROOT
  - name: horizontal
    description: "one idea: horizontal segment dropout"
    config:
      model_type: dinomaly
      variant: horizontal
      row_p: 0.2          # share of rows that lose a segment
      # max_steps: 1000   # else the preset's
      domains: DOMAINS
      data_root: ROOT
"""


LEFT_OUT = "results/\ndata/\n.features/\nmlartifacts/\nmlruns/\nmlflow.db*\noptuna.db*\n"


class Options(Frozen):
    folder: Path = Field(description="folder to begin, made where it is not there")
    data_root: str = doc(SIMULATED, "folder of your maps, whose domains are written down, or simulated")


def begin(start: Start[Options]) -> None:
    options, domains = start.options, DataConfig().domain_names
    target, root = options.folder / CONDITIONS, options.data_root
    if target.exists():
        raise ConfigError(f"{target} is there already; choose another folder, or remove it")
    if root != SIMULATED:
        from dinomaly_hd.data.tree import found_domains  # with numpy

        given = Path(root).expanduser().resolve()
        root, domains = str(given), found_domains(given, usual=domains)
        if not domains:
            raise ConfigError(f"data_root={root}: no domains there; ask doctor with the same data_root")
    text = TEXT.replace("DOMAINS", json.dumps(domains)).replace("ROOT", json.dumps(root))
    publish_text(target, text)
    if not (options.folder / IGNORED).exists():
        publish_text(options.folder / IGNORED, LEFT_OUT)
    say(f"{target}: look at it, then\n")
    say(f"    cd {options.folder}\n    dinomaly-hd suite --conditions_file {CONDITIONS} --seeds 42,43,44")


COMMAND, main = entry_point("init", __doc__, Options, begin)
main = first_word_as("folder", main)

if __name__ == "__main__":
    raise SystemExit(launch(main))
