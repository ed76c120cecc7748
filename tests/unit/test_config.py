"""Configs are frozen, refuse what they do not know, and come back from JSON unchanged."""

import subprocess
import sys

import pytest

from dinomaly_hd.config import WITHOUT_EFFECT, RunConfig, flatten, from_json, with_values
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.flags import HELP, OPTIONS, parse, resolve
from dinomaly_hd.variants import PRESETS, VARIANTS

EVERY = [(variant, preset) for variant in VARIANTS for preset in PRESETS]


def made(variant: str, preset: str) -> RunConfig:
    return PRESETS[preset](VARIANTS[variant]())  # type: ignore[index]


@pytest.mark.parametrize(("variant", "preset"), EVERY)
def test_json_and_back(variant: str, preset: str) -> None:
    run = made(variant, preset)
    assert from_json(run.to_json()) == run
    assert from_json(run.to_json()).digest() == run.digest()


@pytest.mark.parametrize(("variant", "preset"), EVERY)
def test_every_flag_has_help_and_names_one_value(variant: str, preset: str) -> None:
    structural = {"preset", "variant", "bottleneck", "loss"}
    assert set(flatten(made(variant, preset))) - structural <= set(HELP)


def test_the_digest_covers_every_value_that_can_change_a_result() -> None:
    run = made("horizontal", "quick")
    for name, value in flatten(run).items():
        if name in ("preset", "variant", "bottleneck", "loss"):
            continue
        changed = with_values(run, {name: CHANGED.get(name, other(value))})
        assert changed != run, name
        assert (changed.digest() == run.digest()) == (name in WITHOUT_EFFECT), name


CHANGED = {
    "class_token": "keep",
    "border": "reflect",
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
        return value / 2
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
        "import sys; from dinomaly_hd.flags import *; accepted_by(['horizontal'], switches={});"
        "sys.exit(any(name in sys.modules for name in ('torch', 'mlflow', 'timm', 'lightning')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
