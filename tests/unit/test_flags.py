"""Config texts of comparisons: letters and variants, changes behind colons, every mistake named."""

import shlex

import pytest

from dinomaly_hd.config import SegmentBottleneck, TopKLoss, flatten
from dinomaly_hd.config.resolve import config_names, parse, resolve_config, whole_numbers
from dinomaly_hd.config.variants import ABLATION, CONFIG_SETS, VARIANTS
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.training.guards import SignalGuard
from entry_points import ablation, comparisons

VALUES = {"preset": "quick"}
# spec/variants.md, Ablation: element dropout; row_p, seg_len, seg_drop_p or no segments; q in percent or none
TABLE = {
    "A0": (0.2, None, None),
    "A": (0.2, None, 2),
    "B": (0.1, None, None),
    "C": (0.0, (0.2, 2, 0.6), None),
    "D": (0.1, (0.2, 2, 0.6), None),
    "E": (0.1, (0.5, 4, 0.8), None),
    "F": (0.1, (0.2, 2, 0.6), 2),
    "G": (0.1, (0.3, 3, 0.8), 2),
    "F0": (0.1, None, 2),
    "K100": (0.2, None, 100),
}


@pytest.mark.parametrize("letter", ABLATION)
def test_the_ablation_is_the_table(letter: str) -> None:
    model = resolve_config(letter, VALUES).model
    element, segments, q = TABLE[letter]
    bottleneck, loss = model.bottleneck, model.loss
    if isinstance(bottleneck, SegmentBottleneck):
        assert bottleneck.elem_p == element
        drawn = (bottleneck.row_p, bottleneck.seg_len, bottleneck.seg_drop_p)
        assert (None if bottleneck.disable_segment else drawn) == segments
    else:
        assert (flatten(bottleneck)["bottleneck_dropout"], segments) == (element, None)
    assert (loss.q_percent if isinstance(loss, TopKLoss) else None) == q
    assert model.class_token == "remove"
    assert flatten(model)["q_warmup"] == 200 if q else True


def test_the_table_has_every_config() -> None:
    assert list(TABLE) == list(ABLATION)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_config(variant: str) -> None:
    assert resolve_config(variant, VALUES).model.class_token == "remove"


def test_changes_win_over_common_values() -> None:
    run = resolve_config("F:q_percent=1:row_context=2", {**VALUES, "row_context": "1", "max_steps": "7"})
    assert flatten(run)["q_percent"] == 1
    assert (run.model.row_context, run.training.max_steps) == (2, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H", "config 'H': unknown"),
        ("horizonal", "Did you mean 'horizontal'"),
        ("F:q_percnt=1", "Did you mean 'q_percent'"),
        ("F:q_percent", "'q_percent' is not name=value"),
        ("F:q_percent=200", "q_percent='200'"),
        ("A0:seg_len=2", "seg_len does not apply to A0"),
        ("F:seed=1", "seed is the same for all members"),
        ("F:data_root=/x", "data_root is the same for all members"),
        ("F:class_token=keep", "class_token is the same for all members"),
    ],
)
def test_a_wrong_config_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        resolve_config(text, VALUES)
    assert "\n" not in str(raised.value)


def test_sets_stand_for_their_configs() -> None:
    assert config_names("ablation") == tuple(ABLATION)
    assert config_names("D,variants")[:2] == ("D", "A0")
    for names in CONFIG_SETS.values():
        assert all(resolve_config(name, VALUES) for name in names)
    for text in ("", "A0,A0", "ablation,A0"):
        with pytest.raises(ConfigError, match="each once"):
            config_names(text)


def test_numbers_are_read_in_their_order() -> None:
    assert whole_numbers("seeds", "43, 42") == (43, 42)
    for text in ("", "42,42", "-1", "4.2"):
        with pytest.raises(ConfigError, match="seeds="):
            whole_numbers("seeds", text)


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "\x1b[2J", "\u202eb"])
def test_a_value_with_a_hidden_character_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"run_name=.*control or invisible") as raised:
        parse("horizontal", [f"--run_name={value}"], accepted={"run_name": "its name"}, doc="")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--row_p", ".2", "--row-p=.3"], "row_p: given twice; give it once"),
        (["-row_p", ".2"], "unexpected word '-row_p'; write --name value"),
        (["-row_pp=.2"], "unknown flag --row_pp. Did you mean 'row_p'?"),
        (["--row_p", ".2", "-5"], "unexpected word '-5'"),
    ],
)
def test_a_flag_is_given_once_and_with_two_dashes(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse("horizontal", words, accepted={"row_p": "a share"}, doc="")
    assert str(raised.value).startswith(reason)


def test_a_change_is_given_once() -> None:
    with pytest.raises(ConfigError, match="config 'F:q_percent=1:q_percent=2': q_percent is given twice"):
        resolve_config("F:q_percent=1:q_percent=2", {})


def test_the_command_of_a_comparison_repeats_it() -> None:
    flags = ["--configs", "A0,F:q_percent=1", "--seeds", "1,2", "--preset", "quick", "--max_steps", "9"]
    switches = ablation.SWITCHES
    build, seeds, context, chosen, _ = comparisons.prepare_variants(
        "ablation", flags, SignalGuard(), doc="", switches=switches
    )
    words = shlex.split(context.command)
    again = comparisons.prepare_variants("ablation", words[3:], SignalGuard(), doc="", switches=switches)
    assert (again.seeds, again.switches) == (seeds, chosen)
    assert again.build("F", 1, {}) == build("F", 1, {})
    assert build("F", 1, {}).evaluation.maps_per_group == 2
    assert build("F", 1, {"max_steps": "3"}).training.max_steps == 3


def test_what_members_differ_in_is_no_flag_of_the_whole() -> None:
    for name in ("seed", "class_token", "stop_step", "start_from"):
        with pytest.raises(
            ConfigError, match=f"{name} does not apply|seed: ablation has no such flag; give seeds"
        ):
            comparisons.prepare_variants(
                "ablation", [f"--{name}", "1"], SignalGuard(), doc="", switches=ablation.SWITCHES
            )
