"""The simulator writes HDMAP's folders, whole or not at all, and the same bytes for the same seed."""

import csv
import errno
import hashlib
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from dinomaly_hd.data.simulator import FOLDERS, GENERATOR_VERSION, SIZES, simulate, simulate_domain
from dinomaly_hd.data.simulator.physics import MESH_ORDER_RC, MESHES, Draws, Key, drift, record, texture
from dinomaly_hd.errors import ConfigError, LayoutError, OutputError

TINY = SIZES["tiny"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set of seed 42; read only."""
    return simulate(tmp_path_factory.mktemp("simulated") / "tiny", size="tiny", seed=42)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_folder_holds_numbered_float_maps(tiny: Path) -> None:
    for domain, (folder, images) in product("ABCD", zip(FOLDERS, TINY, strict=True)):
        files = sorted((tiny / f"domain_{domain}" / folder).iterdir())
        assert [path.name for path in files] == [f"{number:06d}.tiff" for number in range(images)]
        for path in files:
            map_RC = tifffile.imread(path)
            assert (map_RC.shape, map_RC.dtype) == ((31, 95), np.float32)
            assert map_RC.min() > 0
    with tifffile.TiffFile(tiny / "domain_A/train/good/000000.tiff") as file:
        assert file.byteorder == "<"
        assert not {"Software", "DateTime", "ImageDescription"} & {tag.name for tag in file.pages.first.tags}


def test_conditions_name_every_image_and_cold_comes_first(tiny: Path) -> None:
    conditions = {row["path"]: row["condition"] for row in rows_of(tiny / "conditions.csv")}
    assert conditions.keys() == {p.relative_to(tiny).as_posix() for p in tiny.glob("domain_*/**/*.tiff")}
    for folder, expected in (("test/fault", "ccww"), ("train/good", "ccwwwwww")):
        names = sorted(path for path in conditions if path.startswith(f"domain_C/{folder}/"))
        assert "".join(conditions[name][0] for name in names) == expected


def test_masks_lie_on_the_damaged_row_and_its_neighbour(tiny: Path) -> None:
    bands = rows_of(tiny / "severity.csv")
    assert len(bands) == 4 * TINY[2] == len(list(tiny.glob("ground_truth/domain_*/test/fault/*.tiff")))
    for band in bands:
        mask_RC = tifffile.imread(tiny / "ground_truth" / band["path"])
        row, length = int(band["row"]), int(band["length"])
        assert (mask_RC.shape, mask_RC.dtype) == ((31, 95), np.float32)
        assert set(np.unique(mask_RC)) == {0, 1}
        assert mask_RC[row].sum() == length
        assert set(np.flatnonzero(mask_RC.any(axis=1))) == {row, (row + 1) % 31}
        assert (length < 95) == band["path"].startswith("domain_C")
        assert 0.05 < float(band["severity"]) < 2.2


def test_the_band_is_brighter_than_its_surroundings_by_its_severity() -> None:
    fault = simulate_domain("A", size=(1, 0, 60), seed=42).fault
    ratios = [
        map_RC[band.row].mean() / map_RC[[band.row - 3, (band.row + 4) % 31]].mean() - 1
        for map_RC, band in zip(fault.maps_NRC, fault.bands, strict=True)
    ]
    severity = np.mean([band.severity for band in fault.bands])
    assert np.mean(ratios) == pytest.approx(severity, abs=0.15)


def test_equal_arguments_give_equal_bytes_and_another_seed_or_fewer_domains_do_not(
    tiny: Path, tmp_path: Path
) -> None:
    whole = contents(tiny)
    assert contents(simulate(tmp_path / "again", size="tiny", seed=42)) == whole
    other = contents(simulate(tmp_path / "other", size="tiny", seed=43))
    assert other.keys() == whole.keys()
    assert all(other[name] != whole[name] for name in whole if name.startswith("domain_"))
    alone = contents(simulate(tmp_path / "alone", size="tiny", seed=42, domains=("B",)))
    assert all(alone[name] == whole[name] for name in alone if "domain_B" in name)


def test_values_are_those_of_every_machine_up_to_one_in_training_and_never_clipped() -> None:
    domain = simulate_domain("C", size=TINY, seed=42)
    little_endian = b"".join(part.maps_NRC.astype("<f4").tobytes() for part in (domain.train, domain.fault))
    digest = "8c5644d35f384402ef1f245085259ab3902864ccb3cbdff570b9300ae73f994f"
    assert hashlib.sha256(little_endian).hexdigest() == digest
    quanta = domain.fault.maps_NRC.astype(np.float64) * 2**20
    assert np.array_equal(quanta, np.round(quanta))
    assert domain.train.maps_NRC.max() == 1.0
    assert domain.fault.maps_NRC[2:].max(axis=(1, 2)).min() > 1.0


@pytest.mark.parametrize("damaged", [False, True])
def test_an_image_does_not_depend_on_how_many_follow(damaged: bool) -> None:
    short = record("C", condition="cold", seed=5, split=1, images=3, damaged=damaged)
    long = record("C", condition="cold", seed=5, split=1, images=12, damaged=damaged)
    assert np.array_equal(short.maps_NRC, long.maps_NRC[:3])
    assert short.bands == long.bands[:3]


def test_every_pair_of_teeth_meets_once_and_time_runs_along_diagonals() -> None:
    assert sorted(MESH_ORDER_RC.ravel()) == list(range(MESHES))
    assert np.array_equal(np.roll(MESH_ORDER_RC, (1, 1), axis=(0, 1)), (MESH_ORDER_RC - 1) % MESHES)


def test_texture_is_correlated_along_diagonals_only() -> None:
    texture_RC = texture(Draws(Key(1)), roughness=0.25)[MESH_ORDER_RC]

    def correlation(rows: int, columns: int) -> float:
        return correlated(texture_RC, np.roll(texture_RC, (rows, columns), axis=(0, 1)))

    assert correlation(1, 1) > 0.6
    assert all(abs(correlation(*step)) < 0.1 for step in ((0, 1), (1, 0), (1, -1)))
    assert texture_RC.mean() == pytest.approx(1.0, abs=0.03)
    assert texture_RC.std() == pytest.approx(0.25, rel=0.05)


def correlated(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_drift_is_standardised_and_slow_and_moves_neighbouring_files() -> None:
    course = drift(Draws(Key(1)), 500)
    assert course.mean() == pytest.approx(0.0, abs=0.1)
    assert course.std() == pytest.approx(1.0, abs=0.1)
    assert correlated(course[1:], course[:-1]) > 0.85
    maps_NRC = record("C", condition="warm", seed=3, split=1, images=200, damaged=False).maps_NRC
    means = maps_NRC.mean(axis=(1, 2))
    assert correlated(means[1:], means[:-1]) > 0.8


def test_normal_draws_are_standard_and_bounded_and_streams_differ_in_every_field_of_their_key() -> None:
    numbers = Draws(Key(1)).normal(200_000)
    assert numbers.mean() == pytest.approx(0.0, abs=0.01)
    assert numbers.std() == pytest.approx(1.0, abs=0.01)
    assert np.abs(numbers).max() < 4.9
    keys = [Key(1)] + [Key(1)._replace(**{name: 2}) for name in Key._fields]
    assert len({tuple(Draws(key).uniform(2)) for key in keys}) == len(keys)


def test_domains_of_one_unit_share_its_signature() -> None:
    patterns = [
        record(domain, condition="warm", seed=3, split=0, images=60, damaged=False).maps_NRC.mean(axis=0)
        for domain in "AD"
    ]
    assert correlated(*patterns) > 0.7


def test_domains_are_written_in_the_fixed_order_with_a_tick_an_image(tmp_path: Path) -> None:
    calls: list[int] = []
    root = simulate(tmp_path, size="tiny", seed=1, domains=("C", "A"), tick=lambda: calls.append(1))
    assert len(calls) == 2 * sum(TINY)
    written = json.loads((root / "simulation.json").read_text())
    assert written == {"generator": GENERATOR_VERSION, "size": "tiny", "seed": 1, "domains": ["A", "C"]}
    assert rows_of(root / "conditions.csv")[0]["path"].startswith("domain_A")


def test_a_complete_folder_is_left_as_it_is(tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    assert simulate(tiny, size="tiny", seed=42) == tiny
    assert simulate(tiny, size="tiny", seed=42, domains=("C",)) == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


def a(root: Path, *, seed: int = 1, domain: str = "A") -> Path:
    return simulate(root, size="tiny", seed=seed, domains=(domain,))


DAMAGED = '{"generator": 1, "size": "tiny", "seed": 1, "domains": null}'
OCCUPIED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (lambda root: root.write_text("mine"), "not a folder"),
    "other data": (lambda root: (root / "domain_A").mkdir(parents=True), "no readable simulation.json"),
    "another seed": (lambda root: a(root, seed=2), "seed is 2"),
    "another domain": (lambda root: a(root, domain="B"), "domain A is missing"),
    "an image lost": (
        lambda root: (a(root) / "domain_A/test/good/000003.tiff").unlink(),
        "domain_A/test/good holds 3 images instead of 4",
    ),
    "a damaged record": (
        lambda root: (root.mkdir(), (root / "simulation.json").write_text(DAMAGED)),
        "no readable simulation.json",
    ),
}


@pytest.mark.parametrize("case", OCCUPIED)
def test_anything_else_in_the_way_is_named_and_kept(tmp_path: Path, case: str) -> None:
    root = tmp_path / "data"
    occupy, reason = OCCUPIED[case]
    occupy(root)
    before = contents(tmp_path)
    with pytest.raises(LayoutError, match=reason) as caught:
        a(root)
    assert str(root) in str(caught.value)
    assert "name another folder" in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "quik"}, "size 'quik'.*Did you mean 'quick'"),
        ({"domains": ("A", "E")}, "domain 'E'.*Known: A, B, C, D"),
        ({"domains": ()}, "domains is empty"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(tmp_path / "data", **{"size": "tiny", "seed": 1, **arguments})
    assert list(tmp_path.iterdir()) == []


def fail_at(number: int, error: BaseException) -> Callable[[], None]:
    """Return a tick that fails at the given image."""
    images = iter(range(1, number))

    def tick() -> None:
        if next(images, None) is None:
            raise error

    return tick


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), OutputError, "cannot write .*data.*No space left"),
        (KeyboardInterrupt("stopped"), KeyboardInterrupt, "stopped"),
    ],
)
def test_a_full_disk_or_an_interruption_leaves_nothing(
    tmp_path: Path, error: BaseException, expected: type[BaseException], message: str
) -> None:
    (tmp_path / ".writing-data" / "domain_A").mkdir(parents=True)  # a killed writer's
    with pytest.raises(expected, match=message):
        simulate(tmp_path / "data", size="tiny", seed=1, tick=fail_at(5, error))
    assert not [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")]


def test_a_parent_that_cannot_hold_folders_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        a(tmp_path / "file" / "data")
