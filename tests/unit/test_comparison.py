"""A comparison refuses what cannot be compared, corrects what it tests, and says in words what follows."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dinomaly_hd.errors import ConfigError, DataError, NonFiniteError
from dinomaly_hd.evaluation import metrics, statistics
from dinomaly_hd.evaluation.compare import Comparison, Focus, compare, focus_table, verdict, where
from dinomaly_hd.evaluation.comparison_answer import answer, asked_focus, one_image, ranking
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.comparison_pages import Question, comparison_pages, reading
from dinomaly_hd.evaluation.comparison_plots import comparison_pictures, dot_figure, forest_figure
from dinomaly_hd.evaluation.pictures import MapPicture
from dinomaly_hd.evaluation.plots import encode_png, png_bytes
from dinomaly_hd.files import publish
from tests.work import made_up_scores

DOMAINS = ("domain_A", "domain_C")
C_COLD = Focus("domain_C", "cold")
ASKED = Question("Three ideas", "Which helps C cold?")


def member(label: str, seed: int, *, effect: float = 0.0, count: int = 12, **changes: Any) -> MemberRun:
    """A run whose faults of domain C, cold, score higher by ``effect``; ``changes`` alter its result."""
    scores = made_up_scores(DOMAINS, count=count)
    noise = np.random.default_rng([seed, *label.encode()]).normal(size=len(scores))
    cold_fault = scores.eval("domain == 'domain_C' and condition == 'cold' and label == 1")
    scores["score"] += 0.2 * noise - 0.2 * scores["label"] + effect * cold_fault
    config = {
        "seed": seed,
        "model": {"row_p": 0.1},
        "training": {"max_steps": 1000, **changes.pop("training", {})},
    }
    result = {
        "data_digest": "abc",
        "config": config,
        "versions": {"torch": "2.11"},
        "kernels": "lean",
    } | changes
    return MemberRun(label, seed, f"runs/{label}_{seed}", result, scores)


def runs(seeds: int = 3, **effects: float) -> list[MemberRun]:
    effects = effects or {"base": 0.0, "same": 0.0, "better": 2.0}
    return [member(label, seed, effect=effect) for label, effect in effects.items() for seed in range(seeds)]


@pytest.fixture(scope="module")
def three() -> Comparison:
    return compare(runs(), draws=300)


COLD_AUROC = {"domain": "domain_C", "condition": "cold", "metric": "auroc"}


def row(table: pd.DataFrame, **values: Any) -> pd.Series:
    found = where(table, **values)
    assert len(found) == 1
    return found.iloc[0]


def pages_of(
    comparison: Comparison, *focuses: Focus, text: str = "why", drawn: bool = False
) -> tuple[str, str]:
    """The page and the Markdown."""
    pictures = comparison_pictures(comparison, focuses=focuses) if drawn else {}
    asked = ASKED if text == "why" else Question(text, text)
    failed = {} if text == "why" else {text: text}
    focus = asked_focus(comparison, asked)
    pages = comparison_pages(
        comparison,
        asked,
        answer=answer(comparison, focus),
        ranking=ranking(comparison, focus, focuses),
        command=text,
        failed=failed,
        focuses=focuses,
        pictures=pictures,
    )
    return pages["report.html"], pages["report.md"]


def test_means_are_those_of_the_runs_own_metrics(three: Comparison):
    found = row(three.means, label="better", **COLD_AUROC)
    cold = [where(run.scores, domain="domain_C", condition="cold") for run in runs()[6:]]
    values = [metrics.auroc(own["score"], own["label"]) for own in cold]
    assert (found["mean"], found["std"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found["n"] == 3
    whole = where(three.means, label="better", condition="all", metric="auroc").set_index("domain")["mean"]
    assert whole["mean"] == pytest.approx(whole[list(DOMAINS)].mean())


def test_differences_are_paired_tests_with_both_corrections(three: Comparison):
    table = three.differences
    assert set(table["label"]) == {"same", "better"}
    found = row(table, label="better", **COLD_AUROC)
    values = where(three.values, **COLD_AUROC).pivot(index="seed", columns="label", values="value")
    expected = statistics.paired_test(values["base"], values["better"])
    assert (found["t_p"], found["wilcoxon_p"]) == pytest.approx((expected.t_p, expected.wilcoxon_p))
    assert (found["seeds_low"], found["seeds_high"]) == pytest.approx(
        (expected.seeds_low, expected.seeds_high)
    )
    single = where(table, label="better", condition="cold", metric="auroc")
    single = single[single["domain"] != "mean"]
    assert list(single["p_holm"]) == pytest.approx(list(statistics.holm(single["t_p"])))
    for domain in (*DOMAINS, "mean"):
        here = where(table, domain=domain, condition="cold", metric="auroc")
        corrected = list(statistics.holm(here["t_p"]))
        assert list(here["p_holm_labels"]) == pytest.approx(corrected, nan_ok=True)
    mean = where(table, domain="mean")
    pd.testing.assert_series_equal(mean["p_holm"], mean["p_holm_labels"], check_names=False)


def test_a_real_effect_is_found_and_only_there(three: Comparison):
    found = row(three.differences, label="better", **COLD_AUROC)
    assert found["verdict"] == "higher"
    assert 0 < found["images_low"] < found["mean_difference"] < found["images_high"]
    same = three.differences[three.differences["label"] == "same"]
    assert set(same["verdict"]) == {"no difference shown"}


def test_only_a_corrected_p_value_makes_a_verdict(three: Comparison):
    table = three.differences
    called = table["verdict"].isin(("higher", "lower"))
    assert (table["p_holm"][called] < 0.05).all()
    assert (table["p_holm"][~called].fillna(1.0) >= 0.05).all()
    assert (table["p_holm"].fillna(1) >= table["t_p"].fillna(0)).all()
    nan = float("nan")
    for seeds, difference, p, words in (
        (3, 0.1, 0.04, "higher"),
        (3, -0.1, 0.04, "lower"),
        (3, 0.1, 0.06, "no difference shown"),
        (3, 0.1, nan, "no difference shown"),
        (2, 0.1, 0.001, "nothing can be concluded (2 seeds)"),
        (1, 0.1, nan, "nothing can be concluded (1 seed)"),
        (3, nan, nan, "nothing can be concluded (no value)"),
    ):
        assert verdict(seeds, difference, p) == words


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_conclude_nothing(seeds: int):
    comparison = compare(runs(seeds), draws=100)
    assert set(comparison.differences["verdict"]) == {
        f"nothing can be concluded ({seeds} seed{'s' * (seeds > 1)})"
    }
    text = " ".join(reading(comparison, failed={}))
    assert f"Nothing can be concluded about any label ({seeds} at most)" in text


def test_focus_sorts_by_difference_and_judges_over_labels(three: Comparison):
    table = focus_table(three, C_COLD, metric="auroc")
    assert list(table["label"]) == ["better", "same"]
    judged = table[["seeds", "mean_difference", "p_holm_labels"]].itertuples(index=False)
    assert [verdict(*own) for own in judged] == list(table["verdict"])


def test_delong_is_run_by_run_on_the_same_images(three: Comparison):
    found = row(three.delong, label="better", seed=1, domain="domain_C", condition="cold")
    base, better = (
        where(runs()[i].scores, domain="domain_C", condition="cold").set_index("path") for i in (1, 7)
    )
    expected = statistics.delong(base["score"], better["score"], label=base["label"])
    assert (found["difference"], found["p"]) == pytest.approx((expected.difference, expected.p))
    assert found["verdict"].startswith("these two runs: ")
    assert len(three.delong) == 2 * 3 * len(DOMAINS) * 3


def test_a_missing_seed_is_named_and_left_out_of_pairs():
    members = [run for run in runs() if (run.label, run.seed) != ("better", 1)]
    comparison = compare(members, draws=100)
    assert comparison.missing == (("better", 1),)
    assert comparison.common_seeds("better") == (0, 2)
    found = row(comparison.differences, label="better", **COLD_AUROC)
    assert found["seeds"] == 2
    assert found["verdict"] == "nothing can be concluded (2 seeds)"
    text = " ".join(reading(comparison, failed={"better/1": "NaN loss"}))
    assert "better has no seed 1" in text
    assert "better/1 (NaN loss)" in text


def test_order_of_images_and_of_runs_changes_nothing(three: Comparison):
    shuffled = [
        run._replace(scores=run.scores.sample(frac=1, random_state=i)) if i else run
        for i, run in enumerate(runs())
    ]
    again = compare([shuffled[0], *reversed(shuffled[1:])], draws=300)
    key = ["label", "domain", "condition", "metric"]
    first, second = (c.differences.set_index(key).sort_index() for c in (three, again))
    pd.testing.assert_frame_equal(first, second)


OTHER = member("other", 0)
STALE = {**OTHER.result, "per_domain_metrics": {"domain_C": {"auroc": 0.123}}}
BROKEN = OTHER.scores.assign(score=OTHER.scores["score"].where(OTHER.scores.index != 3))
AGAIN = {"label": "base", "name": "elsewhere"}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"result": {**OTHER.result, "data_digest": "xyz"}}, DataError, ["different data", "abc and xyz"]),
        (
            {"scores": OTHER.scores.iloc[1:]},
            DataError,
            ["different images", "domain_A/test/good/cold0.tiff is only in runs/base_0"],
        ),
        (
            {"scores": OTHER.scores.assign(label=1 - OTHER.scores["label"])},
            DataError,
            ["different images", "label 0 and 1"],
        ),
        (
            {"result": STALE},
            DataError,
            ["domain_C has AUROC 0.123000 in its result", "evaluate the run again"],
        ),
        ({"scores": BROKEN}, NonFiniteError, ["other, seed 0 (runs/other_0): domain_A/test/good/cold3.tiff"]),
        (AGAIN, ConfigError, ["label 'base' has seed 0 twice: runs/base_0 and elsewhere"]),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_and_named(change, error, words):
    other = OTHER._replace(**change)
    with pytest.raises(error) as caught:
        compare([*runs(1)[:1], other])
    for word in [*words, other.name]:
        assert word in str(caught.value)


def test_no_runs_and_an_unknown_reference_are_named():
    with pytest.raises(ConfigError, match="no runs"):
        compare([])
    with pytest.raises(ConfigError, match=r"reference 'bas' is not a label .*\. Did you mean 'base'"):
        compare(runs(1), reference="bas")


def test_settings_that_differ_are_noted_unless_they_are_the_compared_thing():
    members = [
        member("short", 0),
        member("long", 0, training={"max_steps": 3000}, versions={"torch": "2.12"}, kernels="plain"),
    ]
    settings = compare(members, draws=10).settings
    assert "max_steps differs between runs: 1000 (short); 3000 (long)" in settings.notes
    assert "version of torch differs between runs: 2.11 (short); 2.12 (long)" in settings.notes
    assert "kernels differs between runs: lean (short); plain (long)" in settings.notes
    assert settings.equal == {"row_p": "0.1"}
    asked = compare(members, compared=["max_steps"], draws=10).settings
    assert asked.by_label == {"short": {"max_steps": "1000"}, "long": {"max_steps": "3000"}}
    assert not any("max_steps" in note for note in asked.notes)
    mixed = compare([member("a", 0), member("a", 1, training={"max_steps": 3000})], draws=10).settings
    assert "max_steps differs inside a: its mean mixes 1000, 3000" in mixed.notes


def test_one_class_has_no_metric_and_no_verdict():
    members = [run._replace(scores=run.scores.assign(label=0)) for run in runs()]
    comparison = compare(members, draws=50)
    assert set(comparison.differences["verdict"]) == {"nothing can be concluded (no value)"}
    assert set(comparison.delong["reason"].str[:18]) == {"needs both classes"}
    assert "concluded: no AUROC can be had on domain_C." in pages_of(comparison, C_COLD, drawn=True)[0]


def test_identical_runs_show_no_difference_without_a_p_value():
    base = runs(base=0.0)
    comparison = compare([*base, *(run._replace(label="copy") for run in base)], draws=50)
    facts = comparison.differences[["verdict", "t_p", "reason"]].drop_duplicates().to_numpy().tolist()
    assert facts == [["no difference shown", pytest.approx(np.nan, nan_ok=True), "all differences are zero"]]
    assert "AUROC: no test could be made" in " ".join(reading(comparison, failed={}))


def test_html_is_one_escaped_file_with_its_parts_in_order(three: Comparison):
    evil = "<script>alert(1)</script>"
    members = [run._replace(label=evil, name=evil) if run.label == "same" else run for run in runs()]
    text, _ = pages_of(compare(members, draws=50), C_COLD, text=evil, drawn=True)
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64)", text)
    assert text.count("<img") == 6
    plain, _ = pages_of(three, C_COLD)
    focus = "Which labels differ on domain_C cold?"
    headings = ["Ranking", "Reading", "Means over seeds", focus, "Pictures", "All differences"]
    found = re.findall(r"<h2><input id=\"(s\d+)\" .*?>(.*?)</h2>", plain)
    assert [title for _, title in found] == [*headings, "What was compared"]
    assert found == re.findall(r"<label for=\"(s\d+)\">(.*?)</label>", plain), "its contents"
    assert "runs/better_2" in plain


def test_markdown_holds_the_numbers_and_labels_cannot_break_its_tables(three: Comparison):
    _, text = pages_of(three, C_COLD)
    found = row(three.means, label="better", domain="domain_C", condition="all", metric="auroc")
    assert f"{100 * found['mean']:.2f} ± {100 * found['std']:.2f}" in text
    assert "| better | 3 | +" in text
    odd = compare([run._replace(label=run.label + "|x") for run in runs(1)], draws=10)
    tables = [line for line in pages_of(odd)[1].split("\n") if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert widths == {len(DOMAINS) + 3, 8}, "means, and the ranking"


@pytest.mark.parametrize(
    ("seeds", "effects", "said"),
    [
        (3, {"base": 0, "better": 2}, r"better is better than base on domain_C and has the highest mean: "
         r"AUROC [\d.]+ against [\d.]+ %, 3 seeds, p 0\.\d+\."),
        (3, {"base": 0, "same": 0}, r"Nothing shown: on domain_C no label's AUROC differs significantly from "
         r"that of base, [\d.]+ %; the highest other is same, [\d.]+ %, 3 seeds, p 0\.\d+\."),
        (3, {"base": 2, "worse": 0, "w": 0}, "base is the best on domain_C: AUROC .* of the next, w.*, 3 "
         "seeds, p .* after correction over 2 labels."),
        (3, {"base": 2, "worse": 0, "as good": 2},
         r"Nothing better than base is shown on domain_C; worse are worse \(-[\d.]+\)\."),
        (2, {"base": 0, "better": 2},
         r"Nothing can be concluded: fewer than 3 seeds in common with base \(2 at most\)\."),
        (3, {"base": 0}, "There is one label only, base: nothing is compared."),
    ],
)  # fmt: skip
def test_the_answer_is_one_sentence_by_corrected_tests(seeds: int, effects: dict[str, float], said: str):
    members = runs(seeds, **effects)
    comparison = compare(members, draws=100)
    focus = asked_focus(comparison, ASKED)
    assert focus == Focus("domain_C", "all")
    text = answer(comparison, focus)
    assert re.fullmatch(said, text), text
    assert f"**{text}**" in re.sub(r"\\([|>`*])", r"\1", pages_of(comparison)[1])
    assert asked_focus(comparison, ASKED._replace(place="mean")) == Focus("mean", "all")


def test_a_label_of_too_few_seeds_is_never_the_answer_however_high_its_mean():
    members = [one for one in runs(base=0.0, better=2.0, few=9.0) if (one.label, one.seed) != ("few", 2)]
    text = answer(compare(members, draws=100), Focus("domain_C", "all"))
    assert text.startswith("better is better than base on domain_C: AUROC")
    assert re.search(r"; nothing can be concluded about few \(\+[\d.]+\), of too few seeds\.$", text)


def test_the_answer_says_of_each_finding_what_its_tests_do_not_show():
    members, focus = runs(base=0.0, better=2.0, best=3.0), Focus("domain_C", "all")
    comparison = compare(members, draws=100)
    wide = replace(comparison, differences=comparison.differences.assign(images_low=-1.0, images_high=1.0))
    assert answer(wide, focus).endswith("; other test images might turn it round for best, better.")
    copied = [*members[:3], *(run._replace(label="copy") for run in members[:3])]
    assert answer(compare(copied, draws=10), focus).endswith(", 3 seeds, all differences are zero.")
    alone = [*copied, members[-1]]  # one seed of a third label: no test, so none that is corrected for
    assert ", 3 seeds, all differences are zero; nothing can" in answer(compare(alone, draws=10), focus)
    healthy = [run._replace(scores=run.scores[run.scores["label"] == 0]) for run in alone]
    said = answer(compare(healthy, draws=10), focus)
    assert said == "Nothing can be concluded: no AUROC can be had on domain_C."


def test_the_ranking_is_by_the_mean_where_it_is_asked_and_shows_its_test(three: Comparison):
    frame = ranking(three, C_COLD, [C_COLD, Focus("mean", "all")]).frame
    means = where(three.means, **COLD_AUROC).set_index("label")["mean"].sort_values(ascending=False)
    assert list(frame["label"]) == list(means.index)
    assert list(frame.columns[2:5]) == ["AUROC domain_C cold", "TPR 1 % domain_C cold", "AUROC mean"]
    assert set(frame.set_index("label").loc["base"].iloc[-3:]) == {"-", "reference"}
    assert frame["verdict"][0] == "higher"


def test_the_same_images_go_through_every_model_or_none_are_shown(tmp_path: Path):
    def drawn(label: str, seed: int, missing: str = "") -> MemberRun:
        run, picture = member(label, seed), MapPicture(input_shape=(8, 20), limit=1.0)
        pixels = picture.draw(np.zeros((8, 20)), np.full((8, 20), 0.1 * seed), title="\n\n")
        for path, domain, label_, *_ in run.scores.itertuples(index=False):
            kind, stem = "fault" if label_ else "good", Path(path).stem
            if stem in ("cold0", "cold1", "warm0", "warm1") and stem[:-1] != missing:
                name = f"{kind}_highest_01_{stem}.png"
                publish(
                    tmp_path / run.name / "anomaly_maps" / domain / name,
                    lambda s: s.write(encode_png(pixels)),
                )
        return run._replace(folders=(tmp_path / run.name,))

    members = [drawn("base", 1), drawn("base", 0), drawn("other", 1), drawn("other", 2)]
    shown = one_image(members, hard="domain_C")
    assert shown is not None
    assert [name for name, _ in shown.images] == [
        "domain_C/test/fault/cold0.tiff, cold",
        "domain_C/test/fault/warm0.tiff, warm",
        "domain_A/test/fault/cold0.tiff, cold",
        "domain_C/test/good/cold0.tiff, cold",
    ]
    assert list(shown.maps) == ["base, seed 1", "other, seed 1"], "the seed that they share"
    no_cold = one_image([members[0], drawn("third", 1, missing="cold")], hard="domain_C")
    assert no_cold is not None
    assert {name[-4:] for name, _ in no_cold.images} == {"warm"}
    assert one_image([members[0], member("elsewhere", 1)], hard="domain_C") is None
    page = comparison_pages(
        compare(members, draws=2), ASKED, answer="", ranking=ranking(compare(members, draws=2), C_COLD, []),
        one_image=shown, command="", failed={}, focuses=[], pictures={},
    )["report.html"]  # fmt: skip
    assert page.count("<img") == 4 + 2 * 4


def test_one_label_has_no_differences_and_says_so():
    comparison = compare(runs(base=0.0))
    assert comparison.differences.empty
    assert comparison.delong.empty
    page, markdown = pages_of(comparison, C_COLD, drawn=True)
    assert "There is one label only, base, so nothing is compared" in page
    assert "difference to" not in markdown


def test_reading_counts_tests_and_findings(three: Comparison):
    text = " ".join(reading(three, failed={}))
    table = where(three.differences, metric="auroc")
    table = table[table["domain"] != "mean"]
    assert f"AUROC: {table['t_p'].notna().sum()} tests" in text
    assert f"After Holm's correction over domains: {(table['p_holm'] < 0.05).sum()} significant" in text
    assert "better higher on domain_C cold" in text
    assert "cannot give a p-value under 0.25" in text
    assert "12 normals: the finest FPR is 8.33 % (domain_A cold, " in text
    assert "24 normals: the finest FPR is 4.17 % (domain_A, domain_C)" in text


@pytest.mark.parametrize("count", [2, 30])
def test_pictures_can_hold_two_to_thirty_labels(count: int):
    comparison = compare(runs(2, **{f"label{i}": 0.0 for i in range(count)}), draws=20)
    dots = dot_figure(comparison, condition="cold", metric="auroc")
    forest = forest_figure(comparison, C_COLD, metric="auroc")
    assert png_bytes(dots).startswith(b"\x89PNG")
    assert png_bytes(forest).startswith(b"\x89PNG")
    assert len(dots.axes) == len(DOMAINS) + 1
    assert len({text.get_text() for text in dots.axes[0].get_yticklabels()}) == count
    assert len(forest.axes[0].get_yticklabels()) == count - 1
