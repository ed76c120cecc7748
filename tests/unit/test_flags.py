"""Flags and config texts: every name known, every mistake named, and a start's command repeats it."""

import shlex
from collections.abc import Sequence

import pytest

from dinomaly_hd.config.base import Frozen, doc, flatten
from dinomaly_hd.config.presets import parameters
from dinomaly_hd.config.resolve import MARKER, Asked, Command, Numbers, config_names, resolve_config
from dinomaly_hd.config.variants import ABLATION, CONFIG_SETS, VARIANTS, config_label
from dinomaly_hd.errors import ConfigError, SignalGuard
from entry_points import ablation
from entry_points.common import Start

VALUES = {"preset": "quick"}


@pytest.mark.parametrize("name", [*ABLATION, *VARIANTS])
def test_every_config_and_variant_is_compared_without_class_tokens(name: str) -> None:
    assert resolve_config(name, VALUES).model.class_token == "remove"


def test_changes_win_over_common_values() -> None:
    run = resolve_config("F:q_percent=1:row_context=2", {**VALUES, "row_context": "1", "max_steps": "7"})
    assert flatten(run)["q_percent"] == 1
    assert (run.model.row_context, run.training.max_steps) == (2, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H", "config 'H': unknown"),
        ("horizonal", "Did you mean 'horizontal'"),
        ("F:q_percnt=1", "config 'F:q_percnt=1': 'q_percnt' is unknown. Did you mean 'q_percent'"),
        ("F:q_percent", "'q_percent' is not name=value$"),
        ("F:q_percent=200", "q_percent='200'"),
        ("F:q_percent=1:q_percent=2", "config 'F:q_percent=1:q_percent=2': q_percent is given twice"),
        ("A0:seg_len=2", "seg_len does not apply to A0"),
        ("F:seed=1", "seed is the same for all members"),
        ("F:preset=full", "preset is the same for all members"),
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


# ---- flags ----


class Options(Frozen):
    share: float = doc(0.5, "a share")
    seeds: Numbers = doc((42,), "some seeds")
    run_name: str = doc("auto", "its name")


def parse(*words: str) -> Asked[Options]:
    """Read words as an entry point does that takes what horizontal has, too."""
    return Command("x", "", Options, runs=lambda: parameters("horizontal"), instead={"sead": "seeds"}).parse(
        words
    )


@pytest.mark.parametrize(
    "words",
    [["--row-p", ".3"], ["--row_p", ".3"], ["--row_p=.3"], ["--row-p=.3"], [MARKER, "--row_p", ".3"]],
)
def test_flags_in_all_spellings(words: Sequence[str]) -> None:
    assert parse(*words).values == {"row_p": ".3"}


def test_a_switch_needs_no_value_and_auto_leaves_the_value_to_the_preset() -> None:
    assert parse("--disable_segment", "--max_steps=auto").values == {"disable_segment": "true"}


def test_options_are_checked_by_their_fields() -> None:
    options = parse("--share", "1", "--seeds", "43, 42").options
    assert (options.share, options.seeds) == (1, (43, 42))
    for text in ("", "42,42", "-1", "4.2"):
        with pytest.raises(ConfigError, match=r"seeds=.*expected whole numbers, each once"):
            parse(f"--seeds={text}")
    with pytest.raises(ConfigError, match="share='half': input should be a valid number"):
        parse("--share=half")


def test_what_mlproject_declares_counts_where_it_was_changed() -> None:
    declared = ["--row_p=0.2", "--seg_len=4", "--share=0.5", MARKER]
    asked = parse(*declared, "--elem_p", "0")
    assert asked.given == {"seg_len": "4", "elem_p": "0"}
    assert asked.command(seed=7) == "python -m entry_points.x --seg_len=4 --elem_p=0 --seed=7"


@pytest.mark.parametrize("value", ["--data_root=/etc", "-x", "-1e-3", "--row_p", "-P", "--help", "", "a=b"])
def test_whatever_stands_behind_a_name_behind_the_marker_is_its_value(value: str) -> None:
    assert parse(MARKER, "--disable_segment", value, "--row_p", ".3").given == {
        "disable_segment": value,
        "row_p": ".3",
    }


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--row_p", ".2", "--row-p=.3"], "row_p: given twice; give it once"),
        (["--row_p", ".2", MARKER, "--row_p", ".3"], "row_p: given twice; give it once"),
        (["--seed", "1", "--seeds=1"], "seeds or seed: given twice; give it once"),
        (["-row_p", ".2"], "unexpected word '-row_p'; write --name value"),
        (["--row-pp", ".2"], "unknown flag --row_pp. Did you mean 'row_p'?"),
        (["-row_pp=.2"], "unknown flag --row_pp. Did you mean 'row_p'?"),
        (["--row_p", ".2", "-5"], "unexpected word '-5'"),
        (["--sead=1"], "sead: x has no such flag; give seeds"),
        (["--gem_p=1"], "gem_p does not apply to x as it is set, only to gem; leave it out"),
        ([MARKER, "--row_p"], "unexpected word '--row_p' behind -P"),
        ([MARKER, "row_p", ".2"], "unexpected word 'row_p' behind -P"),
        ([MARKER, "--row_p", "--"], "unexpected word '--row_p=--'"),
        (["--row_p=--"], "unexpected word '--row_p=--'"),
        ([MARKER, "--row_p=.2", ".3"], "unexpected word '--row_p=.2' behind -P"),
        ([MARKER, "--a b\n", "1"], "unknown flag --'a b\\n'."),
    ],
)
def test_a_flag_is_known_and_given_once_with_two_dashes(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(*words)
    assert str(raised.value).startswith(reason)


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "\x1b[2J", "\u202eb"])
@pytest.mark.parametrize("marker", [[], [MARKER]])
def test_a_value_with_a_hidden_character_is_refused(value: str, marker: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"run_name=.*control or invisible") as raised:
        parse(*marker, "--run_name", value)
    assert str(raised.value).isprintable()


def test_the_command_of_a_comparison_repeats_it() -> None:
    asked = ablation.COMMAND.parse(["--configs", "A0,F:q_percent=1", "--seeds", "1,2", "--max_steps", "9"])
    start = Start(asked, SignalGuard())
    again = ablation.COMMAND.parse(shlex.split(start.context().command)[3:])
    assert again.options == asked.options
    run = Start(again, SignalGuard()).member("F", 1)
    assert run.digest() == start.member("F", 1).digest()
    assert (run.evaluation.maps_per_group, run.training.max_steps) == (2, 9)
    assert start.member("F", 1, max_steps="3").training.max_steps == 3


@pytest.mark.parametrize("name", ["class_token", "stop_step", "start_from"])
def test_what_members_differ_in_is_no_flag_of_the_whole(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} does not apply"):
        ablation.COMMAND.parse([f"--{name}", "1"])


@pytest.mark.parametrize("name", ABLATION)
def test_a_letter_is_shown_as_a_config_and_read_either_way(name: str) -> None:
    assert resolve_config(f"cfg-{name}", VALUES) == resolve_config(name, VALUES)
    for text in (name, f"{name}:q_percent=1", f"{name}, seed 42"):
        assert config_label(text) == f"cfg-{text}"
        assert config_label(f"cfg-{text}") == f"cfg-{text}"
    assert config_label(f"{name}_else") == f"{name}_else"
