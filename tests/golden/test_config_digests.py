"""What decides a run's numbers, of every variant, family, ablation config and shipped condition, by digest.

A digest moves with any value, name or default of a resolved config, so that a change of the code around
configs shows here what it changed in them. Where that is meant:
``python -m tests.golden.test_config_digests``.
"""

import json
from pathlib import Path

from dinomaly_hd.condition_files import read_conditions
from dinomaly_hd.flags import resolve, resolve_config, resolve_model
from dinomaly_hd.presets import FAMILIES, PRESETS
from dinomaly_hd.variants import ABLATION, VARIANTS
from entry_points.families import domains_of

FILE = Path(__file__).parent / "config_digests.json"
CONDITIONS = Path(__file__).resolve().parents[2] / "conditions"


def digests() -> dict[str, str]:
    """Return the digest of everything that has a name, under both presets."""
    found: dict[str, str] = {}
    for preset in PRESETS:
        common = {"preset": preset}
        found |= {f"{name} {preset}": resolve(name, common).digest() for name in VARIANTS}
        found |= {f"{name} {preset}": resolve_model(name, common).digest() for name in FAMILIES}
        found |= {f"config {name} {preset}": resolve_config(name, common).digest() for name in ABLATION}
        for file in ("single_domain.json", "multi_domain.json", "ablation.yaml"):
            for one in read_conditions(CONDITIONS / file):
                values = {**one.values, **common, **domains_of(one)}
                model = values.pop("variant", one.model_type)
                found[f"{file} {one.name} {preset}"] = resolve_model(model, values).digest()
    return found


def test_no_config_has_moved() -> None:
    assert digests() == json.loads(FILE.read_text())


if __name__ == "__main__":
    FILE.write_text(json.dumps(digests(), indent=1) + "\n")
