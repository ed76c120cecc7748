"""The hold-out of normals is a function of seed and domain (spec protocols, Splits)."""

from pathlib import Path

import numpy as np
import pytest

from dinomaly_hd.data.hdmap import Manifest, hold_out, with_labelled_faults
from dinomaly_hd.data.rows import ImageRecord
from dinomaly_hd.data.tree import FOLDERS
from dinomaly_hd.errors import ConfigError, LayoutError


def manifest(*domains: str, count: int = 40) -> Manifest:
    records = [
        ImageRecord(f"{domain}/{split}/{folder}/{position}.tiff", domain, split, label)
        for domain in domains
        for split, folder, label in FOLDERS
        for position in range(count)
    ]
    rest = {"condition_rule": "", "digest": "", "warnings": ()}
    return Manifest(
        root=Path("/"), domains=domains, records=tuple(records), shape=(31, 95), dtype="float32", **rest
    )


def paths(data: Manifest, positions: np.ndarray) -> list[str]:
    return [data.records[position].path for position in positions]


def test_a_tenth_of_each_domain_is_held_out_and_nothing_is_lost() -> None:
    data = manifest("domain_A", "domain_B")
    split = hold_out(data, ratio=0.1, seed=42)
    domains = [data.records[position].domain for position in split.held_out]
    assert domains == ["domain_A"] * 4 + ["domain_B"] * 4
    both = np.sort(np.concatenate([split.train, split.held_out]))
    np.testing.assert_array_equal(both, data.indices(split="train"))
    np.testing.assert_array_equal(split.normals, split.train)
    for side in split:
        np.testing.assert_array_equal(side, np.unique(side))


def test_the_draw_is_that_of_seed_and_domain_for_ever() -> None:
    alone, together = manifest("domain_C"), manifest("domain_A", "domain_C", "domain_D")
    assert hold_out(alone, ratio=0.1, seed=42).held_out.tolist() == [10, 17, 30, 38]
    expected = paths(alone, hold_out(alone, ratio=0.25, seed=7).held_out)
    drawn = paths(together, hold_out(together, ratio=0.25, seed=7).held_out)
    assert [path for path in drawn if path.startswith("domain_C")] == expected
    first = hold_out(together, ratio=0.25, seed=42).held_out
    np.testing.assert_array_equal(first, hold_out(together, ratio=0.25, seed=42).held_out)
    assert first.tolist() != hold_out(together, ratio=0.25, seed=43).held_out.tolist()
    assert first[:10].tolist() != (first[10:20] - 120).tolist(), "each domain has a draw of its own"


def test_global_random_state_is_neither_read_nor_moved() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    hold_out(manifest("domain_C"), ratio=0.1, seed=42)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(("ratio", "held"), [(0.0, 0), (1e-9, 1), (0.1, 4), (0.5, 20), (0.9999, 39)])
def test_each_side_keeps_an_image_when_the_ratio_is_above_zero(ratio: float, held: int) -> None:
    split = hold_out(manifest("domain_A"), ratio=ratio, seed=1)
    assert (len(split.train), len(split.held_out)) == (40 - held, held)
    assert split.held_out.dtype == np.int64


def test_one_image_cannot_be_split() -> None:
    data = manifest("domain_A", count=1)
    assert len(hold_out(data, ratio=0, seed=1).train) == 1
    with pytest.raises(LayoutError, match="domain_A/train/good: 1 image"):
        hold_out(data, ratio=0.1, seed=1)


def test_domains_that_are_only_tested_keep_their_hold_out_and_their_normals() -> None:
    data = manifest("domain_A", "domain_B", "domain_C")
    whole = hold_out(data, ratio=0.25, seed=3)
    part = hold_out(data, ratio=0.25, seed=3, train_domains=["domain_C", "domain_A"])
    np.testing.assert_array_equal(part.held_out, whole.held_out)
    np.testing.assert_array_equal(part.normals, whole.normals)
    trained = [data.records[position].domain for position in part.train]
    assert trained == ["domain_A"] * 30 + ["domain_C"] * 30
    own = [position for position in whole.train if data.records[position].domain != "domain_B"]
    np.testing.assert_array_equal(part.train, own)


@pytest.mark.parametrize("names", [[], ["domain_D"], ["A"], ["domain_A", "domain_X"]])
def test_domains_to_train_on_must_be_loaded(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"train_domains=.*one or more of domain_A, domain_B") as raised:
        hold_out(manifest("domain_A", "domain_B"), ratio=0.1, seed=1, train_domains=names)
    assert "\n" not in str(raised.value)


def test_half_of_the_labelled_faults_are_lent_to_training_and_leave_the_test() -> None:
    data = manifest("domain_A", "domain_B", count=9)
    lent = with_labelled_faults(data, domain="domain_A")
    assert lent.counts()["domain_A"] == {"train/good": 9, "test/good": 9, "test/fault": 5, "train/fault": 4}
    assert lent.counts()["domain_B"] == data.counts()["domain_B"]
    assert [one.path for one in lent.records] == [one.path for one in data.records]
    assert lent == with_labelled_faults(data, domain="domain_A")
    assert paths(lent, lent.indices(split="train", label=1)) != paths(
        data, data.indices(domain="domain_A", label=1)[:4]
    )
    for ratio in (0.0, 0.25):
        ours, theirs = (hold_out(one, ratio=ratio, seed=1) for one in (lent, data))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)), "no fault among normals"
    with pytest.raises(
        LayoutError, match=r"domain_A/test/fault: 1 images, fault_source=source_domain needs 2"
    ):
        with_labelled_faults(manifest("domain_A", count=1), domain="domain_A")
