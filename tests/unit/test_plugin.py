"""A user's own variant: known everywhere once its file is named, and refused by name where it is not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.conditions_file import file_model, keys_of, read_conditions
from dinomaly_hd.config.dinomaly import PLUGINS, DinomalyConfig
from dinomaly_hd.config.presets import MODELS, every_parameter
from dinomaly_hd.config.resolve import MARKER, resolve_config, value_of
from dinomaly_hd.config.run import RunConfig, from_json
from dinomaly_hd.config.variants import VARIANTS
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models import build
from dinomaly_hd.models.dinomaly.score import MeanPooling
from dinomaly_hd.plugin import load_plugin

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "my_variant.py"
VALUES = {"preset": "quick"}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Take out what a plugin added, which a process has for good."""
    tables = (PLUGINS, VARIANTS, MODELS, build.LOSSES)
    before, field = [dict(table) for table in tables], DinomalyConfig.model_fields["loss"]
    annotation = field.annotation
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)  # type: ignore[arg-type]
    field.annotation = annotation
    for config in (DinomalyConfig, RunConfig):
        config.model_rebuild(force=True)
    for known in (every_parameter, keys_of, file_model):
        known.cache_clear()


def plugin(folder: Path, *changes: tuple[str, str]) -> Path:
    """Return a copy of the example with some of its text replaced."""
    text, path = EXAMPLE.read_text(), folder / "mine.py"
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def test_the_example_is_a_config_with_its_own_loss() -> None:
    load_plugin(EXAMPLE)
    load_plugin(EXAMPLE)  # once more is no other one
    run = resolve_config("even_rows:row_weight=5", VALUES)
    assert (flatten(run)["row_weight"], run.model.variant, run.model.class_token) == (
        5,
        "even_rows",
        "remove",
    )
    grid = (4, 6)
    loss, plain = (
        build.LOSSES[name](resolve_config(config, VALUES).model.loss, grid)
        for name, config in (("even_rows", "even_rows:row_weight=5"), ("hard_mining", "A0"))
    )
    draws = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(2, 3, 2, 24, 8, generator=draws)
    told = {"pooling": MeanPooling(None), "batch": None, "step": 0}
    with_term, without = loss(encoder, decoder, **told), plain(encoder, decoder, **told)
    distance = 1 - torch.cosine_similarity(encoder, decoder, dim=-1)
    rows = torch.stack([part.mean(-1) for part in distance.split(grid[1], dim=-1)], dim=-1)
    variance = ((rows - rows.mean(-1, keepdim=True)) ** 2).sum(-1).mean() / (grid[0] - 1)
    torch.testing.assert_close(with_term.total, without.total + 5 * variance)
    torch.testing.assert_close(with_term.parts["row_variance"], variance)


def test_conditions_files_know_it_and_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    said = "{model_type: dinomaly, variant: even_rows, row_weight: 3, domains: [A]}"
    file.write_text(f"experiment_conditions:\n  - name: mine\n    config: {said}\n")
    with pytest.raises(ConfigError, match="condition mine: row_weight=3: unknown key"):
        read_conditions(file)
    load_plugin(EXAMPLE)
    (condition,) = read_conditions(file)
    assert (condition.values["variant"], condition.values["row_weight"]) == ("even_rows", "3.0")


def test_a_stored_config_needs_the_very_file_and_others_are_as_before() -> None:
    before = resolve_config("A0", VALUES)
    load_plugin(EXAMPLE)
    run = resolve_config("even_rows", VALUES)
    assert from_json(run.to_json()) == run
    after = resolve_config("A0", VALUES)
    assert (after.digest(), after.to_json()) == (before.digest(), before.to_json())
    told = run.model.plugin
    PLUGINS.clear()
    with pytest.raises(ConfigError, match=rf"is of plugin '{told}', loaded: none; .*--plugin FILE"):
        from_json(run.to_json())
    PLUGINS["my_variant.py:0123456789abcdef"] = b""
    with pytest.raises(ConfigError, match=rf"is of plugin '{told}', loaded: my_variant.py:0123456789abcdef"):
        from_json(run.to_json())
    with pytest.raises(ConfigError, match=r"is of plugin '\\x1b\[2J\\nx', loaded"):
        from_json('{"plugin": "\x1b[2J\nx"}')


def test_a_changed_file_is_another_run(tmp_path: Path) -> None:
    load_plugin(EXAMPLE)
    first = resolve_config("even_rows", VALUES)
    with pytest.raises(ConfigError, match=r"my_variant.py:\w+ is loaded; put all variants into one file"):
        load_plugin(plugin(tmp_path))
    other = first.model_copy(update={"model": first.model.model_copy(update={"plugin": "my_variant.py:0"})})
    assert other.digest() != first.digest()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([("VARIANTS = {", "VARIANTS = {}[")], "SyntaxError: "),
        ([("VARIANTS = ", "OTHERS = ")], "has no attribute 'VARIANTS'"),
        ([('{"even_rows": even', '{"topk": even')], "variant 'topk': taken"),
        ([('{"even_rows": even', '{"F": even')], "variant 'F': taken"),
        ([('{"even_rows": even', '{"../x": even')], "variant '../x': taken, or not of letters"),
        (
            [("VARIANTS = {", "EvenRowsLoss(row_weight=-1)\nVARIANTS = {")],
            "line 43: ValidationError: 1 validation",
        ),
        ([('"even_rows"', '"topk"')], "EvenRowsLoss: there is a loss 'topk' already"),
        ([("VARIANTS = {", "print(undefined)\nVARIANTS = {")], "line 43: NameError: name 'undefined'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(
    changes: list[tuple[str, str]], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        load_plugin(plugin(tmp_path, *changes))
    assert str(raised.value).startswith(f"plugin={tmp_path / 'mine.py'}: ")
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="No such file"):
        load_plugin(tmp_path / "missing.py")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ablation", "--plugin", "a.py"], "a.py"),
        (["--plugin=a=b.py", "--configs=A0"], "a=b.py"),
        (["--configs=A0", MARKER, "--plugin", "a.py"], "a.py"),
        (["--configs=A0"], ""),
        (["--data_root=--plugin=a.py", "a.py"], ""),
        (["--data_root=--plugin", "--seed=a.py"], ""),
        ([MARKER, "--data_root", "--plugin", "--seed", "a.py"], ""),
        ([MARKER, "--data_root", "--plugin=a.py"], ""),
    ],
)
def test_no_value_of_another_flag_is_ever_taken_for_a_plugin(words: list[str], found: str) -> None:
    assert value_of("plugin", words) == found
