"""Configs are frozen, refuse what they do not know, and come back from JSON unchanged."""

from typing import Annotated, Literal, get_args, get_origin

import pytest
from optuna.distributions import FloatDistribution
from pydantic.fields import FieldInfo

from dinomaly_hd.config import presets as catalogue
from dinomaly_hd.config.base import Probability, Search, blocks_of, doc, flatten, with_values
from dinomaly_hd.config.conditions_file import file_model, keys_of, schema_text
from dinomaly_hd.config.dinomaly import FocalLoss
from dinomaly_hd.config.presets import (
    MODELS,
    PRESETS,
    described,
    help_of,
    preset_run,
    search_ranges,
    with_every_part,
)
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.config.run import AFTER_TRAINING, NO_ENCODER, WITHOUT_EFFECT, RunConfig, from_json
from dinomaly_hd.config.variants import VARIANTS, baseline, change
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.names import shown
from dinomaly_hd.tuning.space import dimensions
from entry_points.common import training

EVERY = [(name, preset) for name in MODELS for preset in PRESETS]
STRUCTURAL = {
    *("model_type", "variant", "trained_by"),
    *("bottleneck", "attention", "loss", "distance", "auxiliary"),
}
"""Values that variant and preset decide."""
CHOICES = {"fault_source", "severity_head_pooling_type", "score_combination"}
"""Values that choose a part."""


def made(variant: str, preset: str) -> RunConfig:
    return preset_run(preset, MODELS[variant]())  # type: ignore[arg-type]


def test_one_name_has_one_rule_and_a_description() -> None:
    models = [model for name in MODELS for _, model in with_every_part(name)]
    rules: dict[str, tuple[object, ...]] = {}
    for model in models:
        run = preset_run("full", model)
        none = {"encoder", "encoder_weights"} if run.encoder.encoder == NO_ENCODER else set()
        assert set(flatten(run)) - STRUCTURAL - none == set(described(run))
        for name, field in described(run).items():
            rule = (field.annotation, *map(repr, field.metadata))
            assert rules.setdefault(name, rule) == rule, name


def test_a_parameter_that_is_said_once_is_in_help_schema_and_search_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Loud(FocalLoss):
        loudness: Annotated[Probability, Search(0.1, 0.4)] = doc(0.5, "how loud it is")

    for table in (MODELS, VARIANTS):
        monkeypatch.setitem(table, "loud", lambda: change(baseline(), variant="loud", loss=Loud()))
    made_of_fields = (catalogue.parameters_by_part, catalogue.every_parameter, keys_of, file_model)
    for function in made_of_fields:
        function.cache_clear()
    try:
        assert help_of(training("loud", "")[0].parameters()["loudness"]) == "how loud it is: from 0 to 1"
        assert '"loudness": { "description": "how loud it is", "maximum": 1, "minimum": 0,' in schema_text()
        assert search_ranges()["loudness"] == (float, Search(0.1, 0.4))
        assert dimensions()["loudness"] == FloatDistribution(0.1, 0.4, step=0.01)
        run = resolve_model("loud", {"preset": "quick", "loudness": ".25"})
        assert flatten(run)["loudness"] == 0.25
        with pytest.raises(ConfigError, match="loudness='2': input should be less than or equal to 1"):
            resolve_model("loud", {"preset": "quick", "loudness": "2"})
        with pytest.raises(ConfigError, match="loudness does not apply to focal as it is set, only to loud;"):
            resolve_model("focal", {"preset": "quick", "loudness": "1"})
    finally:
        monkeypatch.undo()
        for function in made_of_fields:
            function.cache_clear()


def test_what_is_searched_lies_within_its_rule() -> None:
    ranges = search_ranges()
    assert ranges["q_percent"] == (float, Search(0.5, 20, log=True))
    for name, (kind, search) in ranges.items():
        assert kind in (bool, int, float)
        variants = [one for one in MODELS if name in flatten(made(one, "full"))]
        for end in (search.low, search.high):
            assert flatten(with_values(made(variants[0], "full"), {name: end}))[name] == end


@pytest.mark.parametrize(("variant", "preset"), EVERY)
def test_json_and_back(variant: str, preset: str) -> None:
    run = made(variant, preset)
    assert from_json(run.to_json()) == run


@pytest.mark.parametrize("variant", MODELS)
def test_the_digest_covers_every_value_that_can_change_a_result(variant: str) -> None:
    run = made(variant, "quick")
    for name in described(run).keys() - CHOICES - {"preset"}:
        changed = with_values(run, {name: CHANGED.get(name) or other(described(run)[name])})
        assert changed != run, name
        assert (changed.digest() == run.digest()) == (name in WITHOUT_EFFECT), name


def test_the_digest_can_leave_out_what_training_does_not_see() -> None:
    run = made("aux", "quick")
    values = {"row_context": 2, "border": "reflect", "aux_score_weight": 1.0, "max_steps": 7}
    for name, value in values.items():
        changed = with_values(run, {name: value})
        assert (changed.digest(without=AFTER_TRAINING) == run.digest(without=AFTER_TRAINING)) == (
            name in AFTER_TRAINING
        )


CHANGED = {
    "decoder_blocks": "0",
    "row_radius": "full",
    "position_radius": "1",
    "scale_weights": ".35,.65",
    "train_domains": "A",
    "target_layers": "2,3",
    "layers": "1,2",
    "coreset_sampling_ratio": 0.2,
    "context": "2",
    "patch_width_range": "10-20",
    "patch_ratio_range": "1-2",
    "final_rate_share": 0.5,
    "image_size": "392",
    "crop": "196",
    "gpu": "cpu",
    "map_size": "128",
    "decoder_depth": 12,
    "val_split_ratio": 0.2,
}


def other(field: FieldInfo) -> object:
    value = field.default
    if get_origin(field.annotation) is Literal:
        return next(word for word in get_args(field.annotation) if word != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.5
    return f"{value}x"


def test_unknown_keys_in_json_are_refused() -> None:
    text = made("baseline", "full").to_json().replace('"seed"', '"sead"')
    with pytest.raises(ConfigError, match="sead"):
        from_json(text)


def test_auto_leaves_the_value_to_the_preset_and_use_topk_makes_another_variant() -> None:
    values = {"preset": "quick", "max_steps": "auto"}
    assert resolve_model("horizontal", values) == made("horizontal", "quick")
    run = resolve_model("horizontal", {**values, "use_topk": "true", "q_percent": "5"})
    assert (run.model.variant, flatten(run)["q_percent"]) == ("horizontal_topk", 5)
    with pytest.raises(ConfigError, match="use_topk='maybe': expected true or false"):
        resolve_model("horizontal", {**values, "use_topk": "maybe"})


# Limits of numbers stand in conditions/schema.json, which changes with any of them.
PART_VALUES = [
    ("decoder_dropout", "decoder_blocks", "7-4", "names no decoder blocks"),
    ("decoder_dropout", "decoder_blocks", "a", "names no decoder blocks"),
    ("row_mask", "row_radius", "-1", "is not a radius"),
    ("row_mask", "row_radius", "half", "is not a radius"),
    ("scale", "scale_weights", ".35", "write learned, or 2 weights"),
    ("scale", "scale_weights", "0,0", "write learned, or 2 weights"),
    ("scale", "scale_weights", "-1,2", "write learned, or 2 weights"),
    ("topk", "topk_scope", "image", "'batch', 'sample' or 'domain'"),
    ("aux", "aux_weight", "-1", "greater than or equal to 0"),
    ("horizontal", "row_p", "abc", "valid number"),
    ("baseline", "image_size", "20y", "is not a size"),
    ("baseline", "decoder_depth", "3", "multiple of 2"),
    ("baseline", "learning_rate", "nan", "finite number"),
    # What no machine holds.
    ("baseline", "decoder_depth", "102", "less than or equal to 100"),
    ("baseline", "image_size", "4097", "pixels up to 4096"),
    ("baseline", "target_layers", "2,10000", "names no layers"),
    ("decoder_dropout", "decoder_blocks", "0-99999999999", "has blocks"),
    ("baseline", "batch_size", "2147483648", "less than or equal to 2147483647"),
    ("baseline", "data_root", "x" * 1001, "at most 1000 characters"),
    ("baseline", "data_root", "a\nb", "control or invisible"),
    ("baseline", "gpu", "1000", "match pattern"),
]


@pytest.mark.parametrize(("variant", "name", "value", "rule"), PART_VALUES)
def test_values_of_every_part_are_checked(variant: str, name: str, value: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as raised:
        with_values(made(variant, "quick"), {name: value})
    assert str(raised.value).startswith(f"{name}={shown(value)}: ")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_blocks_are_those_of_the_decoder() -> None:
    assert blocks_of("2-3,0", depth=4) == [0, 2, 3]
    with pytest.raises(ValueError, match=r"the decoder has blocks 0\.\.3"):
        blocks_of("2-4", depth=4)


@pytest.mark.parametrize("size", ["64", "64x64", "64X64", "064"])
def test_one_size_has_one_digest(size: str) -> None:
    run = made("horizontal", "quick")
    assert with_values(run, {"image_size": size}).digest() == with_values(run, {"image_size": "64"}).digest()
