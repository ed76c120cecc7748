"""Configs are frozen, refuse what they do not know, and come back from JSON unchanged."""

import subprocess
import sys

import pytest
from dinomaly_hd.flag_texts import HELP, OPTIONS

from dinomaly_hd.config import (
    AFTER_TRAINING,
    NO_ENCODER,
    PARTS,
    WITHOUT_EFFECT,
    RunConfig,
    blocks_of,
    flatten,
    from_json,
    weights_of,
    with_values,
)
from dinomaly_hd.config.presets import FAMILIES, PRESETS, preset_run
from dinomaly_hd.config.resolve import parse, resolve
from dinomaly_hd.config.variants import ABLATION, VARIANTS
from dinomaly_hd.errors import ConfigError

MODELS = {**VARIANTS, **{name: model for name, model in FAMILIES.items() if name != "dinomaly"}}
EVERY = [(name, preset) for name in MODELS for preset in PRESETS]
STRUCTURAL = {
    *("preset", "model_type", "variant", "trained_by"),
    *("bottleneck", "attention", "loss", "distance", "auxiliary"),
}
"""Values that variant and preset decide."""


def made(variant: str, preset: str) -> RunConfig:
    return preset_run(preset, MODELS[variant]())  # type: ignore[arg-type]


@pytest.mark.parametrize(("variant", "preset"), EVERY)
def test_json_and_back(variant: str, preset: str) -> None:
    run = made(variant, preset)
    assert from_json(run.to_json()) == run
    assert from_json(run.to_json()).digest() == run.digest()


@pytest.mark.parametrize(("variant", "preset"), EVERY)
def test_every_flag_has_help_and_names_one_value(variant: str, preset: str) -> None:
    assert set(flatten(made(variant, preset))) - STRUCTURAL <= set(HELP)


@pytest.mark.parametrize("variant", MODELS)
def test_the_digest_covers_every_value_that_can_change_a_result(variant: str) -> None:
    run = made(variant, "quick")
    for name, value in flatten(run).items():
        if name in STRUCTURAL or name in PARTS or (value == NO_ENCODER and name.startswith("encoder")):
            continue
        opposite = {"class_token": "keep" if value == "remove" else "remove"}
        changed = with_values(run, {name: {**CHANGED, **opposite}.get(name, other(value))})
        assert changed != run, name
        assert (changed.digest() == run.digest()) == (name in WITHOUT_EFFECT), name


def test_the_digest_tells_the_variants_apart() -> None:
    assert len({made(variant, "quick").digest() for variant in VARIANTS}) == len(VARIANTS)


def test_the_digest_can_leave_out_what_training_does_not_see() -> None:
    run = made("aux", "quick")
    values = {"row_context": 2, "border": "reflect", "aux_score_weight": 1.0, "max_steps": 7}
    for name, value in values.items():
        changed = with_values(run, {name: value})
        assert (changed.digest(without=AFTER_TRAINING) == run.digest(without=AFTER_TRAINING)) == (
            name in AFTER_TRAINING
        )


def test_every_config_of_the_ablation_removes_class_tokens_and_differs_from_the_others() -> None:
    runs = {name: preset_run("full", config()) for name, config in ABLATION.items()}
    assert {run.model.class_token for run in runs.values()} == {"remove"}
    assert len({run.digest() for run in runs.values()}) == len(runs) == 10
    assert all(from_json(run.to_json()) == run for run in runs.values())


CHANGED = {
    "decoder_blocks": "0",
    "row_radius": "full",
    "scale_weights": ".35,.65",
    "topk_scope": "sample",
    "train_domains": "A",
    "border": "reflect",
    "target_layers": "2,3",
    "layers": "1,2",
    "coreset_sampling_ratio": 0.2,
    "context": "2",
    "image_score": "top_share",
    "patch_width_range": "10-20",
    "patch_ratio_range": "1-2",
    "severity_head_mode": "multi_scale",
    "severity_loss_type": "smooth_l1",
    "trivial_score": "std",
    "optimizer": "adamw",
    "final_rate_share": 0.5,
    "validate_on": "source_test",
    "image_size": "392",
    "crop": "196",
    "simulate_size": "full",
    "conditions": "none",
    "lr_schedule_interval": "epoch",
    "on_nonfinite": "skip",
    "precision": "bf16",
    "gpu": "cpu",
    "cache": "off",
    "map_size": "128",
    "decoder_depth": 12,
    "val_split_ratio": 0.2,
}


def other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.5
    return f"{value}x"


def test_values_are_checked_in_one_line() -> None:
    run = made("horizontal", "quick")
    for values, message in [
        ({"row_p": "1.5"}, "row_p='1.5': .*less than or equal to 1"),
        ({"row_p": "abc"}, "row_p='abc': .*valid number"),
        ({"image_size": "20y"}, "image_size='20y': .*is not a size"),
        ({"decoder_depth": "3"}, "decoder_depth='3': .*multiple of 2"),
        ({"learning_rate": "nan"}, "learning_rate"),
    ]:
        with pytest.raises(ConfigError, match=message) as raised:
            with_values(run, values)
        assert "\n" not in str(raised.value)


def test_unknown_keys_in_json_are_refused() -> None:
    text = made("baseline", "full").to_json().replace('"seed"', '"sead"')
    with pytest.raises(ConfigError, match="sead"):
        from_json(text)


def test_flags_in_both_spellings() -> None:
    accepted = {"row_p": "", "seed": ""}
    for words in (["--row-p", ".2"], ["--row_p", ".2"], ["--row_p=.2"]):
        assert parse("x", words, accepted=accepted, doc="") == {"row_p": ".2"}
    with pytest.raises(ConfigError, match="Did you mean 'row_p'"):
        parse("x", ["--row-pp", ".2"], accepted=accepted, doc="")


def test_auto_leaves_the_value_to_the_preset() -> None:
    assert resolve("horizontal", {"preset": "quick", "max_steps": "auto"}) == made("horizontal", "quick")


def test_a_value_of_another_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="row_p does not apply to topk"):
        resolve("topk", {"preset": "quick", "row_p": ".3"})


def test_use_topk_makes_another_variant() -> None:
    run = resolve("horizontal", {"preset": "quick", "use_topk": "true", "q_percent": "5"})
    assert run.model.variant == "horizontal_topk"
    assert flatten(run)["q_percent"] == 5


def test_options_do_not_hide_config_values() -> None:
    assert not set(OPTIONS) & set(HELP)


def test_help_needs_neither_torch_nor_mlflow() -> None:
    code = (
        "import sys; from dinomaly_hd.config.resolve import *; accepted_by(['horizontal'], switches={});"
        "sys.exit(any(name in sys.modules for name in ('torch', 'mlflow', 'timm', 'lightning')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PART_VALUES = [
    ("decoder_dropout", "decoder_blocks", "7-4", "names no decoder blocks"),
    ("decoder_dropout", "decoder_blocks", "a", "names no decoder blocks"),
    ("decoder_dropout", "decoder_heads", "1.5", "less than or equal to 1"),
    ("row_mask", "row_radius", "-1", "is not a radius"),
    ("row_mask", "row_radius", "half", "is not a radius"),
    ("scale", "scale_weights", ".35", "write learned, or 2 weights"),
    ("scale", "scale_weights", "0,0", "write learned, or 2 weights"),
    ("scale", "scale_weights", "-1,2", "write learned, or 2 weights"),
    ("gem", "gem_p", "0", "greater than 0"),
    ("focal", "focal_gamma", "-1", "greater than or equal to 0"),
    ("topk", "q_percent", "0", "greater than 0"),
    ("topk", "q_percent", "101", "less than or equal to 100"),
    ("topk", "topk_scope", "image", "'batch', 'sample' or 'domain'"),
    ("adaptive", "ape_scale", "-1", "greater than or equal to 0"),
    ("aux", "aux_weight", "-1", "greater than or equal to 0"),
    ("row_masking", "row_p", "2", "less than or equal to 1"),
    ("directional_topk", "tail_context", "-1", "greater than or equal to 0"),
]


@pytest.mark.parametrize(("variant", "name", "value", "rule"), PART_VALUES)
def test_values_of_every_part_are_checked(variant: str, name: str, value: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}='{value}': .*{rule}") as raised:
        with_values(made(variant, "quick"), {name: value})
    assert "\n" not in str(raised.value)


def test_blocks_and_weights_are_read() -> None:
    assert blocks_of("1,3", depth=4) == [1, 3]
    assert blocks_of("2-3,0", depth=4) == [0, 2, 3]
    assert blocks_of("last-half", depth=2) == [1]
    with pytest.raises(ValueError, match=r"the decoder has blocks 0\.\.3"):
        blocks_of("2-4", depth=4)
    assert weights_of(".35,.65") == [0.35, 0.65]


@pytest.mark.parametrize("size", ["64", "64x64", "64X64", "064"])
def test_one_size_has_one_digest(size: str) -> None:
    assert (
        resolve("horizontal", {"image_size": size}).digest()
        == resolve("horizontal", {"image_size": "64"}).digest()
    )
