"""Conditions files: the shipped tables, every key used or refused, JSON as YAML, a schema that agrees."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.conditions_file import (
    ALIASES,
    MAX_BYTES,
    Condition,
    keys_of,
    read_conditions,
    read_plain,
    schema_text,
)
from dinomaly_hd.config.presets import FAMILIES, any_of
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import ABLATION, VARIANTS
from dinomaly_hd.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[2] / "conditions"
FILES = ("single_domain.json", "multi_domain.json", "ablation.yaml")


def shipped(name: str) -> tuple[Condition, ...]:
    return read_conditions(SHIPPED / name)


def run_of(condition: Condition, *, preset: str) -> RunConfig:
    values = {**condition.values, "preset": preset}
    return resolve_model(values.pop("variant", condition.model_type), values)


@pytest.mark.parametrize(
    ("file", "prefix", "targets"),
    [("single_domain.json", "domainA_", ()), ("multi_domain.json", "domainA_to_BCD_", ("B", "C", "D"))],
)
def test_the_shipped_conditions_are_four_of_each_family(
    file: str, prefix: str, targets: tuple[str, ...]
) -> None:  # their values are those of spec/protocols.md: tests/golden/test_config_digests.py holds them
    conditions = shipped(file)
    assert Counter(one.model_type for one in conditions) == dict.fromkeys(
        {*FAMILIES} - {"trivial", "row_evidence"}, 4
    )
    for one in conditions:
        assert one.name.startswith(prefix)
        assert (one.source_domain, one.target_domains) == ("A", targets)
        assert len(one.description) > 30


def test_the_ablation_reproduces_its_configs() -> None:
    conditions = {condition.name: condition for condition in shipped("ablation.yaml")}
    assert list(conditions) == list(ABLATION)
    for name, condition in conditions.items():
        assert condition.source_domain is None
        run = run_of(condition, preset="full")
        assert run.model == ABLATION[name]()
        assert flatten(run)["class_token"] == "remove"
        assert run.data.domain_names == ("A", "B", "C", "D")


@pytest.mark.parametrize("file", FILES)
def test_every_shipped_value_is_in_the_schema_and_reaches_its_run(file: str) -> None:
    assert accepts(read_plain(SHIPPED / file))
    for condition in shipped(file):
        run = flatten(run_of(condition, preset="quick"))
        for name, text in condition.values.items():
            found = str(run[name]).lower()
            assert found == text.lower() or float(found) == float(text), (condition.name, name)


BASE: dict[str, dict[str, Any]] = {
    family: {"model_type": family, "source_domain": "domain_A"} for family in FAMILIES
}


def document(config: dict[str, Any], **entry: Any) -> dict[str, Any]:
    return {"experiment_conditions": [{"name": "one", "description": "", "config": config, **entry}]}


def read(folder: Path, content: Any) -> tuple[Condition, ...]:
    path = folder / "c.json"
    path.write_text(json.dumps(content))
    return read_conditions(path)


TRANSLATED: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    ("draem", {"image_size": 224}, {"image_size": "224", "crop": "none"}),
    ("draem", {"image_size": [64, 96]}, {"image_size": "64x96", "crop": "none"}),
    ("dinomaly", {"image_size": "448", "crop": 392}, {"image_size": "448", "crop": "392"}),
    ("draem", {"gradient_clip_val": 0.5}, {"gradient_clip": "0.5"}),
    ("draem", {"anomaly_source_path": None}, {}),
    ("draem", {"anomaly_source_path": "textures"}, {"anomaly_source_path": "textures"}),
    ("draem", {"precision": 32, "gpu": 0}, {"precision": "32", "gpu": "0"}),
    ("dinomaly", {"remove_class_token": True}, {"class_token": "remove"}),
    ("dinomaly", {"remove_class_token": False}, {"class_token": "keep"}),
    ("dinomaly", {"variant": "horizontal", "use_topk": True, "q_percent": 1}, {"use_topk": "true"}),
    ("dinomaly", {"variant": "scale", "scale_weights": [0.35, 0.65]}, {"scale_weights": "0.35,0.65"}),
    ("dinomaly", {"variant": "row_mask", "row_radius": 3}, {"row_radius": "3"}),
    ("dinomaly", {"variant": "decoder_dropout", "decoder_blocks": "4-7"}, {"decoder_blocks": "4-7"}),
    ("dinomaly", {"variant": "decoder_dropout", "keys": True}, {"keys": "true"}),
    ("patchcore", {"layers": [8, 11], "context": [2, 3]}, {"layers": "8,11", "context": "2,3"}),
    ("patchcore", {"layers": "layer2", "context": 2}, {"layers": "2", "context": "2"}),
    ("patchcore", {"layers": "layer2, layer3", "context": 0}, {"layers": "2,3", "context": "0"}),
    ("patchcore", {"backbone": "resnet18", "batch_size": 8}, {"encoder": "resnet18", "eval_batch_size": "8"}),
    ("draem_sevnet", {"patch_ratio_range": [1e-5, 1]}, {"patch_ratio_range": "0.00001-1"}),
]


@pytest.mark.parametrize(("family", "config", "flags"), TRANSLATED)
def test_the_authors_keys_become_flags(
    family: str, config: dict[str, Any], flags: dict[str, str], tmp_path: Path
) -> None:
    content = document({**BASE[family], **config})
    assert accepts(content)
    found = read(tmp_path, content)[0].values
    assert found.pop("domains") == "A"
    assert flags.items() <= found.items()
    if "variant" not in config:
        assert found == flags


def test_domains_lose_their_prefix(tmp_path: Path) -> None:
    config = {"model_type": "draem", "source_domain": "B", "target_domains": ["domain_A", "C"]}
    assert read(tmp_path, document(config))[0][3:] == (
        "B",
        ("A", "C"),
        {"domains": "A,B,C", "train_domains": "B"},
    )
    config = {"model_type": "dinomaly", "domains": "domain_A,B"}
    found = read(tmp_path, document(config))[0]
    assert (found.source_domain, found.values) == (None, {"domains": "A,B"})


Refused = dict[str, list[tuple[dict[str, Any], str]]]
"""Keys of a condition and what their refusal says, by family."""
MISSPELT = {
    "draem": "lerning_rate:learning_rate optimiser:optimizer fault_sourse:fault_source sead:seed "
    "early_stop_patience:early_stopping_patience target_domain:target_domains",
    "dinomaly": "encoder_nam:encoder_name bottleneck_droput:bottleneck_dropout varient:variant "
    "remove_cls_token:remove_class_token",
    "patchcore": "back_bone:backbone coreset_ratio:coreset_sampling_ratio num_neighbours:num_neighbors",
    "draem_sevnet": "severity_los_type:severity_loss_type patch_with_range:patch_width_range",
}
UNKNOWN: Refused = {
    family: [
        ({wrong: 1}, f"condition one: {wrong}=1: unknown key. Did you mean '{right}'?")
        for wrong, right in (pair.split(":") for pair in pairs.split())
    ]
    for family, pairs in MISSPELT.items()
}
INERT: Refused = {
    "patchcore": [
        ({"learning_rate": 0.1}, "learning_rate=0.1: does nothing for patchcore, only for dinomaly"),
    ],
    "draem": [
        ({"encoder_name": "x"}, "does nothing for draem, only for dinomaly"),
        ({"layers": [2]}, "layers=[2]: does nothing for draem, only for patchcore"),
        ({"variant": "gem"}, "variant='gem': does nothing for draem, only for dinomaly"),
    ],
    "dinomaly": [
        ({"backbone": "resnet18"}, "backbone='resnet18': does nothing for dinomaly, only for patchcore"),
    ],
    "trivial": [
        ({"image_size": 224}, "image_size=224: does nothing for trivial"),
    ],
}
"""Keys that a family has no use for, whatever else is said."""
AS_SET: Refused = {
    "draem": [
        ({"patch_count": 2}, "patch_count does not apply to draem as it is set, only to draem with fault"),
    ],
    "draem_sevnet": [
        ({"fault_source": "band", "patch_count": 2}, "patch_count does not apply to draem_sevnet"),
        ({"anomaly_source_path": "/t"}, "only to draem, draem_sevnet with fault_source=perlin;"),
        ({"severity_head_spatial_size": 4}, "with severity_head_pooling_type=spatial_aware;"),
        ({"severity_weight_for_combination": 0.1}, "with score_combination=weighted_average;"),
    ],
    "dinomaly": [
        ({"q_percent": 2}, "q_percent does not apply to dinomaly as it is set, only to topk, "),
        ({"variant": "horizontal", "q_percent": 2}, "apply to horizontal as it is set, only to topk, h"),
        ({"variant": "horizontal", "disable_segment": True, "row_p": 0.1}, "disable_segment=true"),
        ({"variant": "gem", "use_topk": True}, "use_topk does not apply to gem as it is set, only to hor"),
    ],
}
"""Keys that do nothing beside others, which the schema does not hold."""


NO_NUMBER = "input should be a valid integer"
WRONG: Refused = {
    "draem": [
        ({"batch_size": "many"}, f"batch_size='many': {NO_NUMBER}; write it without quotes"),
        ({"batch_size": True}, f"batch_size=True: {NO_NUMBER}"),
        ({"batch_size": None}, f"batch_size=None: {NO_NUMBER}"),
        ({"batch_size": 10**400}, "input should be less than or equal to 2147483647"),
        ({"learning_rate": "fast"}, "learning_rate='fast': input should be a valid number"),
        ({"learning_rate": 10**400}, "0000: input should be a valid number"),
        ({"seed": -1}, "seed=-1: input should be greater than or equal to 0"),
        ({"optimizer": "adamm"}, "should be 'stable_adamw', 'adamw' or 'adam'. Did you mean 'adam'?"),
        ({"optimizer": ["adam"]}, "optimizer=['adam']: input should be 'stable_adamw', 'adamw' or 'adam'"),
        ({"image_size": "big"}, "image_size='big': 'big' is not a size: write pixels up to 4096 such as"),
        ({"image_size": [224]}, "image_size=[224]: input should be a valid string"),
        ({"data_root": ""}, "data_root='': string should have at least 1 character"),
        ({"data_root": "a\nb"}, "data_root='a\\nb': holds control or invisible characters"),
        ({"max_epochs": 1, "max_steps": 2}, "max_epochs and max_steps exclude each other; keep one"),
        ({"gradient_clip": 1, "gradient_clip_val": 1}, "exclude each other"),
        ({"domains": ["A"]}, "exclude each other"),
        ({"target_domains": []}, "target_domains=[]: value should have at least 1 item"),
        ({"target_domains": ["B", 3]}, "target_domains=3: input should be a valid string"),
        ({"target_domains": ["A"]}, "target_domains=['A']: A is the source_domain, which is tested anyhow"),
        ({"target_domains": ["B", "domain_B"]}, "a domain is given twice"),
        ({"target_domains": ["../x"]}, "target_domains='../x': string should match"),
        ({"source_domain": None}, "source_domain=None: input should be a valid string"),
        ({"model_type": "dream"}, "model_type='dream': unknown. Did you mean 'draem'?"),
    ],
    "dinomaly": [
        ({"class_token": "keep", "remove_class_token": True}, "exclude each other"),
        ({"variant": "horizonal"}, "Did you mean 'horizontal'?"),
        ({"target_layers": []}, "target_layers=[]: '' names no layers: write auto, or ascending"),
        ({"target_layers": [3, 2]}, "'3,2' names no layers"),
        ({"remove_class_token": "yes"}, "input should be a valid boolean; write it without quotes"),
    ],
    "patchcore": [
        ({"layers": ["block2"]}, "layers=['block2']: 'block2' names no layers"),
        ({"context": [0, 2]}, "context=[0, 2]: '0,2': write half-widths of 1 or more"),
    ],
    "draem_sevnet": [
        ({"patch_width_range": [80, 20]}, "'80-20' is no range: write LOW-HIGH above 0"),
        ({"patch_width_range": [20, 30.5]}, "write whole pixels such as 20-80"),
        ({"severity_head_pooling_type": "spatial_aware", "severity_head_spatial_size": 257}, "to 256"),
    ],
}
LOOSE = r"exclude|: A is|given twice|no layers|write (LOW|half|whole|pix)|\[2|visible|no range|a size|000: "
"""Rules on the relation of values or inside of texts, which the schema does not hold."""


@pytest.mark.parametrize(
    "table", [UNKNOWN, INERT, AS_SET, WRONG], ids=["unknown", "inert", "as set", "wrong"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_key_or_value_is_refused(family: str, table: Refused, tmp_path: Path) -> None:
    for config, message in table.get(family, ()):
        content = document({**BASE[family], **config})
        refused(tmp_path, content, message)
        loose = table is AS_SET or (table is WRONG and re.search(LOOSE, message) is not None)
        assert loose or not accepts(content), message
        assert table is not AS_SET or accepts(content), message


STRUCTURE: list[tuple[Any, str]] = [
    ([], "the file: expected keys and values, got []"),
    ({}, "experiment_conditions is missing; write it"),
    ({"experiment_conditions": []}, "experiment_conditions=[]: list should have at least 1 item"),
    ({"experiment_condition": []}, "unknown key. Did you mean 'experiment_conditions'?"),
    ({**document(BASE["draem"]), "version": 1}, "version=1: unknown key"),
    (
        {"experiment_conditions": ["a"]},
        "condition 1: experiment_conditions: expected keys and values, got 'a'",
    ),
    (document(BASE["draem"], descripton="x"), "descripton='x': unknown key. Did you mean 'description'?"),
    (document(BASE["draem"], description=3), "description=3: input should be a valid string"),
    ({"experiment_conditions": [{"name": "one"}]}, "condition one: config is missing"),
    (
        {"experiment_conditions": [{"name": "one", "config": [1]}]},
        "config: expected keys and values, got [1]",
    ),
    (document({"source_domain": "A"}), "model_type is missing"),
    (document({"model_type": "draem"}), "source_domain is missing; write the domain to train on"),
    *(
        (document(BASE["draem"], name=name), "condition 1: name=")
        for name in ("", "../x", "a/b", "a\\b", ".hidden", "a b", "a\n", "x" * 101, None, 3, "a:b")
    ),
]


@pytest.mark.parametrize(("content", "message"), STRUCTURE)
def test_a_wrong_structure_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    refused(tmp_path, content, message)
    if "a\\n" not in json.dumps(content):  # a line end that Python's $ does not see
        assert not accepts(content)


def test_two_conditions_of_one_name_are_refused(tmp_path: Path) -> None:
    one = document(BASE["draem"])["experiment_conditions"][0]
    for other in (one, {**one, "name": "ONE"}):
        refused(tmp_path, {"experiment_conditions": [one, other]}, "the name is given twice")


def refused(folder: Path, content: Any, message: str) -> None:
    path = folder / "c.json"
    with pytest.raises(ConfigError) as raised:
        read(folder, content)
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text
    assert len(text) < len(str(path)) + 600


HOSTILE: list[tuple[str, bytes, str]] = [
    ("c.json", b"[" * 100_000, "nested too deeply"),
    ("c.yaml", b"[" * 100_000, "nested too deeply"),
    ("c.yaml", b"- " * 50_000, "nested too deeply"),
    ("c.json", b'{"a": 1, "a": 2}', "the key 'a' is given twice; keep one"),
    ("c.yaml", b"a: 1\na: 2\n", "the key 'a' is given twice; keep one (line 2, column 1)"),
    ("c.yaml", b"1: 2\n", "the key 1 is not text; put it in quotes (line 1, column 1)"),
    ("c.yaml", b"a: &x [1]\nb: *x\n", "anchors, aliases and tags are not read"),
    ("c.yaml", b"a: !!python/object/apply:os.system [ls]\n", "anchors, aliases and tags are not read"),
    ("c.yaml", b"a: [1\n", "no valid YAML"),
    ("c.yaml", b"a: 1\n---\nb: 1\n", "no valid YAML"),
    ("c.yaml", b"a: \x01\n", "no valid YAML"),
    ("c.yaml", b"a: " + b"9" * 9999, "no valid YAML: Exceeds the limit"),
    ("c.json", b'{"a": ' + b"9" * 9999 + b"}", "no valid JSON: Exceeds the limit"),
    ("c.json", b'{"a": NaN}', "no valid JSON: NaN is not a JSON number"),
    ("c.json", b'{"a": 1 // no\n}', "no valid JSON: Expecting"),
    ("c.json", b'{"a": 1e999}', "a=inf: unknown key"),
    ("c.json", b'{"' + b"a" * 100_000 + b'": 1}', "unknown key"),
    ("c.json", b"", "no valid JSON"),
    ("c.yaml", b"", "the file: expected keys and values, got None"),
    ("c.json", b"\xff\xfe", "not UTF-8 at byte 0; save it as UTF-8"),
    ("c.json", b" " * (MAX_BYTES + 1), "split it into several conditions files"),
    ("c.jsn", b"{}", "end in .json, .yaml or .yml. Did you mean '.json'?"),
]


@pytest.mark.parametrize(("name", "data", "message"), HOSTILE)
def test_a_hostile_file_is_refused(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        read_conditions(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < len(str(tmp_path)) + 600


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe.json", "folder.json", "missing.json", "nul\0.json"):
        with pytest.raises(ConfigError, match="give a conditions file"):
            read_conditions(tmp_path / name)


def test_yaml_is_json_with_less_punctuation(tmp_path: Path) -> None:
    for name in ("single_domain.json", "multi_domain.json"):
        path = tmp_path / "same.yaml"
        path.write_text(yaml.safe_dump(json.loads((SHIPPED / name).read_text())))
        assert read_conditions(path) == shipped(name)
    path.write_text(
        "{a: [1e-4, 5.e-5, -1, .5, 1e3], b: [no, 010, 1:30, 2024-01-01, '1', NaN], c: [true, null, ~]}"
    )
    assert read_plain(path) == {
        "a": [1e-4, 5e-5, -1, 0.5, 1000.0],
        "b": ["no", "010", "1:30", "2024-01-01", "1", "NaN"],
        "c": [True, None, None],
    }


def test_a_byte_order_mark_and_korean_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    content = document(BASE["draem"], description="기본\n 설정")
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8-sig")
    assert read_conditions(path)[0].description == "기본 설정"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_keys_of_a_family_are_the_values_of_its_runs_and_the_authors_names(family: str) -> None:
    values = any_of(VARIANTS if family == "dinomaly" else (family,))
    own = {"model_type", "source_domain", "target_domains", *(("variant",) if family == "dinomaly" else ())}
    assert set(keys_of(family).model_fields) == {*values, *own, *ALIASES[family]} - {
        "preset",
        "train_domains",
    }


def test_the_schema_file_is_that_of_the_fields() -> None:
    command = [sys.executable, "-m", "dinomaly_hd.config.conditions_file"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert written == schema_text() == (SHIPPED / "schema.json").read_text(), (
        "write it anew: python -m dinomaly_hd.config.conditions_file > conditions/schema.json"
    )
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for family in FAMILIES:
        described = schema["$defs"][family]["properties"]
        assert set(described) == set(keys_of(family).model_fields)
        assert all(entry["description"] and len(entry) > 1 for entry in described.values())


SCHEMA = jsonschema.Draft202012Validator(json.loads((SHIPPED / "schema.json").read_text()))


def accepts(content: Any) -> bool:
    return bool(SCHEMA.is_valid(content))
