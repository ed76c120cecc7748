"""From vibration to maps: the way back from a simulated signal, the length of records, readers, bad input."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray
from scipy.io import savemat, wavfile

from dinomaly_hd.config.vibration import RecordSettings
from dinomaly_hd.data.simulator import SIZES, simulate_domain
from dinomaly_hd.data.simulator.physics import MESH_ORDER_RC, Draws, Key, texture
from dinomaly_hd.data.simulator.raw import Raw, raw_of
from dinomaly_hd.errors import ConfigError, DataError, LayoutError
from dinomaly_hd.files import publish_text
from dinomaly_hd.vibration import dataset
from dinomaly_hd.vibration.alarm import alarm_level, change_points
from dinomaly_hd.vibration.angle import check_pulses, clock_of_pulses, pulse_times
from dinomaly_hd.vibration.averaging import averages, mesh_statistic, windows, without_mesh
from dinomaly_hd.vibration.convert import Converted, maps_of
from dinomaly_hd.vibration.dataset import hdmap
from dinomaly_hd.vibration.indicators import indicators, row_contrast
from dinomaly_hd.vibration.length import Plan, precision
from dinomaly_hd.vibration.readers import BLOCK, open_record
from dinomaly_hd.vibration.teeth import Pair

Floats = NDArray[np.float64]
PAIR = Pair(31, 95)


@pytest.fixture(scope="module")
def simulated() -> Floats:
    """A warm map of the simulator."""
    return simulate_domain("C", size=SIZES["tiny"], seed=42).train.maps_NRC[4].astype(np.float64)


def settings(**values: Any) -> RecordSettings:
    return RecordSettings(**{"teeth": "31,95", "signal": "difference", **values})


def saved(raw: Raw, path: Path, **instead: Any) -> Path:
    channels: dict[str, Any] = {
        "vibration": raw.vibration_T,
        "tachometer": raw.tachometer_T,
        "rate": raw.rate,
    }
    channels |= instead
    np.savez(path, **{name: value for name, value in channels.items() if value is not None})
    return path


def converted(path: Path, **values: Any) -> Converted:
    return maps_of(path, settings(**values), powers=[], tick=lambda: None)


# ---- the way back ----


@pytest.mark.parametrize(("seconds", "maps"), [(32.0, 2), (120.0, 9)])
def test_the_signal_of_a_map_gives_the_map_within_the_error_that_was_predicted(
    simulated: Floats, tmp_path: Path, seconds: float, maps: int
) -> None:
    raw = raw_of(simulated, seconds=seconds, seed=1, noise=1.0, drift=0.04)
    made = converted(saved(raw, tmp_path / "record.npz")).maps
    assert len(made) == maps
    for one in made:
        assert one.speed == pytest.approx(30, rel=0.04)
        samples = raw.rate / (one.speed * 31)
        expected = precision(simulated, noise=one.noise, samples=samples, periods=4, columns=95)
        off = (one.map_RC - expected.floor) / expected.error
        assert abs(off.mean()) < 0.15  # no cell is put where another belongs, none is louder
        assert off.std() == pytest.approx(1.0, abs=0.12)
        assert np.abs(off).max() < 6
    speeds = [one.speed for one in made]
    assert maps == 2 or np.ptp(speeds) > 0.2  # the shaft did not turn steadily


def test_longer_averages_are_more_exact_as_predicted(simulated: Floats, tmp_path: Path) -> None:
    path = saved(raw_of(simulated, seconds=60.0, seed=2, noise=2.0), tmp_path / "record.npz")
    spread = {}
    for periods in (1, 4, 16):
        one = converted(path, periods=periods).maps[0]
        expected = precision(simulated, noise=2 * simulated.mean(), samples=27.5, periods=periods, columns=95)
        off = one.map_RC - np.sqrt(simulated**2 + (1.92 * simulated.mean()) ** 2 / periods)
        spread[periods] = float(off.std() / np.sqrt(np.mean(expected.error**2)))
    assert all(0.85 < value < 1.15 for value in spread.values()), spread


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_tooth_stands_out_of_12_seconds_in_which_the_raw_signal_says_nothing(
    tmp_path: Path, seed: int
) -> None:
    healthy_RC = texture(Draws(Key(seed)), roughness=0.25)[MESH_ORDER_RC]
    damaged_RC = healthy_RC.copy()
    damaged_RC[12] *= 1.3
    contrast, kurtosis = [], []
    for map_RC in (healthy_RC, damaged_RC):
        raw = raw_of(map_RC, seconds=12.0, seed=seed, noise=3.0)
        (one,) = converted(saved(raw, tmp_path / "record.npz"), periods=3).maps
        contrast.append(row_contrast(one.map_RC))
        kurtosis.append(one.indicators["kurtosis"])
    assert np.abs(contrast[0]).max() <= 3.5
    assert contrast[1][12] >= 4
    assert np.abs(np.delete(contrast[1], 12)).max() <= 3.5
    assert kurtosis == pytest.approx([3.0, 3.0], abs=0.07)
    assert abs(kurtosis[1] - kurtosis[0]) < 0.01


def test_every_pair_of_teeth_has_its_cell_and_shared_factors_are_refused_or_folded() -> None:
    mesh = np.arange(2945.0)
    map_RC = PAIR.lay_out(mesh)
    assert all(map_RC[int(t) % 31, int(t) % 95] == t for t in mesh)
    folded = Pair(32, 80)
    assert (folded.period, folded.turns, folded.shape) == (160, (5, 2), (32, 5))
    map_RC = folded.lay_out(np.arange(160.0))
    for row, column in np.ndindex(32, 5):
        t = int(map_RC[row, column])
        assert (t % 32, t % 80) == (row, 16 * column + row % 16)
    with pytest.raises(
        ConfigError, match=r"only 160 of 2560 cells .* i mod 16 = j mod 16; fold=true .* 32 x 5"
    ):
        folded.check(fold=False)


# ---- its parts ----


def test_pulses_are_found_between_samples_across_blocks_and_once_on_a_noisy_edge() -> None:
    rate, edges = 1000.0, np.arange(0.1004, 10, 0.25)
    time = np.arange(10_000) / rate
    phase = (time[:, None] - edges) / 0.004
    channel = np.clip(phase + 0.5, 0, 1).sum(axis=1) - np.clip(phase - 9.5, 0, 1).sum(axis=1)
    found = pulse_times(np.array_split(channel, 7), rate=rate, level=None)
    assert found == pytest.approx(edges, abs=1e-9)
    noisy = channel + 0.05 * np.random.default_rng(0).normal(size=len(channel))
    assert pulse_times([noisy], rate=rate, level=0.5) == pytest.approx(edges, abs=2e-3)


def test_the_clock_is_monotone_and_follows_a_drifting_shaft() -> None:
    true = np.linspace(0, 20, 2001)
    turned = 30 * (true - 0.04 * 11 / (2 * np.pi) * np.cos(2 * np.pi * true / 11))
    pulses = np.interp(np.arange(1, 580), turned, true)
    clock = clock_of_pulses(pulses, pulses_per_turn=1, shaft=1, teeth=31)  # type: ignore[arg-type]
    mesh = np.linspace(0, clock.meshes, 5000)
    found = clock.time_of(mesh)
    assert clock.meshes == 578 * 31
    assert (np.diff(found) > 0).all()
    assert found == pytest.approx(np.interp(mesh / 31 + 1, turned, true), abs=3e-6)


def test_the_residual_has_no_mesh_and_the_difference_no_side_bands() -> None:
    angle = (np.arange(2945 * 16) + 0.5) / 16
    mesh = sum(np.cos(2 * np.pi * h * angle) for h in (1, 2, 3))
    turn, half = (np.cos(2 * np.pi * k * angle / 31) for k in (1, 2))
    side = 0.2 * np.cos(2 * np.pi * angle / 95) * np.cos(2 * np.pi * angle)
    rest = np.cos(2 * np.pi * 4.2 * angle)
    whole = 3 + mesh + turn + half + side + rest
    assert without_mesh(whole, PAIR, signal="none") is whole
    assert without_mesh(whole, PAIR, signal="residual") == pytest.approx(side + rest, abs=1e-9)
    assert without_mesh(whole, PAIR, signal="difference") == pytest.approx(rest, abs=1e-9)


def test_the_statistics_of_a_mesh() -> None:
    signal = np.array([1.0, -1, 1, -1, 0, 0, 0, 4])
    expected = {"rms": [1, 2], "peak": [1, 4], "kurtosis": [1, 21 / 9]}
    for name, values in expected.items():
        assert mesh_statistic(signal, samples=4, statistic=name).tolist() == pytest.approx(values)  # type: ignore[arg-type]


def test_indicators_by_their_definitions() -> None:
    draws = np.random.default_rng(0)
    angle = (np.arange(2945 * 16) + 0.5) / 16
    mean = 2 * np.cos(2 * np.pi * angle) * (1 + 0.1 * np.cos(2 * np.pi * angle / 31))
    mean += 0.1 * draws.normal(size=len(angle))
    shocked = mean.copy()
    shocked[1000:1016] += 3
    found = []
    for signal in (mean, shocked):
        (average,) = averages([(0.0, 1.0, signal)], each=1, turns=95, tick=lambda: None)
        found.append(average)
    powers: list[float] = []
    first, second = (indicators(average, PAIR, powers=powers) for average in found)
    assert first["rms"] == pytest.approx(np.sqrt(np.mean(mean**2)))
    assert first["kurtosis"] == pytest.approx(np.mean((mean - mean.mean()) ** 4) / mean.var() ** 2)
    assert first["crest_factor"] == pytest.approx(np.abs(mean).max() / first["rms"])
    assert first["fm0"] == pytest.approx(np.ptp(mean) / 2, rel=0.01)
    assert first["sideband_level"] == pytest.approx(0.2 / mean.std(), rel=0.02)
    assert [first[name] for name in ("fm4", "m6a")] == pytest.approx([3, 15], rel=0.05)
    assert second["fm4"] > 10 * first["fm4"]
    residual, before = (without_mesh(signal, PAIR, signal="residual") for signal in (shocked, mean))
    ensemble = (np.mean(residual**2) + np.mean(before**2)) / 2  # all maps up to this one
    assert second["na4"] == pytest.approx(np.mean(residual**4) / ensemble**2)


def test_windows_hold_little_and_blocks_are_read_once(tmp_path: Path) -> None:
    samples = np.arange(4 * BLOCK + 17, dtype=np.float32)
    np.save(tmp_path / "long.npy", samples)
    record = open_record(tmp_path / "long.npy")
    assert isinstance(record.channel("0"), np.memmap)  # an hour stays on the disk
    sizes: list[int] = []

    def counted() -> Any:
        for block in record.blocks("0"):
            sizes.append(len(block))
            yield block

    spans = [(first, first + 50_000) for first in range(0, 4 * BLOCK - 50_000, 49_000)]
    for (first, last), window in zip(spans, windows(counted(), spans), strict=True):
        assert (window[0], window[-1], len(window)) == (first, last - 1, 50_000)
        whole = window.base if window.base is not None else window
        assert whole.nbytes <= 8 * (BLOCK + 100_000)
    assert sizes == [BLOCK] * 4  # the fifth, which no window needs, is not read


# ---- how long must a record be? ----


def test_the_plan_answers_before_any_data() -> None:
    plan = Plan.of(PAIR, speed=30, rate=25_600, noise=3.0)
    assert plan.period_s == pytest.approx(95 / 30)
    one, four = plan.at(1), plan.at(4)
    assert (four.error < one.error, four.faintest < one.faintest / 2) == (True, True)
    needed = plan.periods_for(0.3)
    assert needed is not None
    assert plan.at(needed).faintest <= 0.3 < plan.at(needed - 1).faintest
    said = plan.sentence(periods=4, severity=0.3)
    assert f"a band of 0.3 needs {needed} periods" in said
    quiet = precision(1.0, noise=1e-6, samples=27.5, periods=1, columns=95)
    assert quiet.error == pytest.approx(1e-6 / np.sqrt(27.5))  # the textbook's s / sqrt(n)
    assert precision(1e-9, noise=1.0, samples=50, periods=1, columns=95).error == pytest.approx(0.1)
    assert Plan.of(PAIR, speed=30, rate=25_600, noise=1e6).periods_for(0.3) is None


def test_an_alarm_level_keeps_to_its_false_alarms() -> None:
    normals = np.random.default_rng(0).exponential(size=2000)
    level = alarm_level(normals, false_alarms=10, maps_a_day=10_000)
    assert level.value == pytest.approx(np.log(1000), rel=0.1)  # which one in 1000 exceeds
    assert not level.extrapolated
    assert alarm_level(normals, false_alarms=1, maps_a_day=10_000).extrapolated
    assert alarm_level(normals, false_alarms=500, maps_a_day=1000).value == pytest.approx(np.median(normals))
    with pytest.raises(ConfigError, match="false_alarms=20000: expected above 0 and below the 10000 maps"):
        alarm_level(normals, false_alarms=20_000, maps_a_day=10_000)
    with pytest.raises(DataError, match="9 scores of normals"):
        alarm_level(normals[:9], false_alarms=1, maps_a_day=1000)


def test_a_change_of_the_mean_is_found_where_it_is_and_none_where_there_is_none() -> None:
    pytest.importorskip("ruptures")
    scores = np.random.default_rng(0).normal(size=120)
    assert change_points(scores, noise=1.0) == []
    scores[80:] += 3
    (place,) = change_points(scores, noise=1.0)
    assert abs(place - 80) <= 1


# ---- readers ----

WRITERS: dict[str, Callable[[Path, Floats], object]] = {
    "a.npz": lambda path, table: np.savez(path, v=table[:, 0], t=table[:, 1], fs=np.float64(2000)),
    "a.npy": lambda path, table: np.save(path, table),
    "a.mat": lambda path, table: savemat(
        path, {"v": table[:, :1], "t": table[:, 1], "Fs": 2000, "both": table}
    ),
    "header.csv": lambda path, table: np.savetxt(path, table, delimiter=",", header="v,t", comments=""),
    "bare.csv": lambda path, table: np.savetxt(path, table, delimiter=","),
    "tabs.txt": lambda path, table: np.savetxt(path, table, delimiter="\t", header="Rig 7\nDate x"),
    "blanks.txt": lambda path, table: np.savetxt(path, table),
    "a.wav": lambda path, table: wavfile.write(path, 2000, table.astype(np.float32)),
}


@pytest.mark.parametrize("name", [*WRITERS, "a.tdms", "a.parquet"])
def test_every_format_gives_its_channels_by_name_and_its_rate(tmp_path: Path, name: str) -> None:
    table, path = np.random.default_rng(0).normal(size=(300, 2)), tmp_path / name
    if name == "a.tdms":
        nptdms = pytest.importorskip("nptdms")
        with nptdms.TdmsWriter(path) as writer:
            for column, channel in enumerate("vt"):
                writer.write_segment(
                    [nptdms.ChannelObject("rig", channel, table[:, column], {"wf_increment": 1 / 2000})]
                )
    elif name == "a.parquet":
        pytest.importorskip("pyarrow")
        import pandas as pd

        pd.DataFrame(table, columns=["v", "t"]).to_parquet(path)
    else:
        WRITERS[name](path, table)
    record = open_record(path)
    first, second = ("v", "t") if name in ("a.npz", "a.mat", "header.csv", "a.tdms", "a.parquet") else "01"
    for channel, column in ((first, 0), (second, 1)):
        assert np.concatenate(list(record.blocks(channel))) == pytest.approx(table[:, column], abs=1e-6)
    says = {"a.npz", "a.mat", "a.tdms", "a.wav"}
    assert record.rate == (pytest.approx(2000) if name in says else None)
    if name == "a.mat":
        assert record.channel("both:1").tolist() == table[:, 1].tolist()
        with pytest.raises(DataError, match="channel 'both' is 300 x 2; name a column, as both:0"):
            record.channel("both")
    with pytest.raises(DataError, match=r"no channel 'vibratoin'\. Known"):
        record.channel("vibratoin")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.doc", b"", "format '.doc' is not read; expected one of .npz"),
        ("a.npz", b"junk", "a.npz: cannot be read"),
        ("a.mat", b"junk" * 100, "a.mat: cannot be read"),
        ("a.wav", b"junk", "a.wav: cannot be read"),
        ("a.csv", b"no numbers\n", "a.csv: cannot be read: no line of numbers"),
        ("a.csv", b"1,2\n3,x\n", "a.csv: cannot be read"),
    ],
)
def test_files_that_are_no_records_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_record(tmp_path / name)


def test_a_library_that_is_missing_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tdms").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "nptdms", None)
    with pytest.raises(ConfigError, match=r"nptdms is not installed; pip install 'dinomaly-hd\[vibration\]'"):
        open_record(tmp_path / "a.tdms")


# ---- bad input ----


@dataclass
class Bad:
    """A record with one fault: the channels that stand instead of the good ones, settings, and the line."""

    message: str
    instead: Callable[[Raw], dict[str, Any]] = lambda _raw: {}
    values: dict[str, Any] = field(default_factory=dict)
    error: type[Exception] = DataError


def _nan(raw: Raw) -> dict[str, Any]:
    vibration = raw.vibration_T.copy()
    vibration[30_000] = np.nan
    return {"vibration": vibration}


def _pulses(change: Callable[[list[float]], Any]) -> Callable[[Raw], dict[str, Any]]:
    def instead(raw: Raw) -> dict[str, Any]:
        return {
            "tachometer": np.array(change(list(pulse_times([raw.tachometer_T], rate=raw.rate, level=None))))
        }

    return instead


BAD = {
    "no pulses": Bad(
        "'tachometer': 0 pulses, expected 3 or more", lambda raw: {"tachometer": 0 * raw.vibration_T}
    ),
    "a level never reached": Bad("0 pulses", values={"tachometer_level": 7.0}),
    "a pulse missing": Bad(
        r"1 pulses missing, the first at 3\.3\d* s: an interval 2\.00 times",
        _pulses(lambda t: t[:100] + t[101:]),
    ),
    "a pulse doubled": Bad(
        "1 pulses doubled, the first at", _pulses(lambda t: [*t[:100], t[99] + 0.01, *t[100:]])
    ),
    "reversal": Bad("pulse 200 at .* is not after pulse 199", _pulses(lambda t: t[:200] + t[198:100:-1])),
    "standstill": Bad(
        "nearly stands still",
        _pulses(lambda t: [*t[:50], t[49] + 0.3, t[49] + 0.7, *(x + 0.9 for x in t[50:])]),
    ),
    "too short": Bad(
        r"meshes in 2.00 s, fewer than one hunting-tooth period needs: 11780 .* record longer",
        lambda raw: {"vibration": raw.vibration_T[:51_200], "tachometer": raw.tachometer_T[:51_200]},
    ),
    "too few periods": Bad("fewer than periods=9 needs: .* or give periods=4", values={"periods": 9}),
    "NaN": Bad("sample 30000 of channel 'vibration' is not a finite number", _nan),
    "29 teeth": Bad("no mesh line at order 29 .* 31 teeth would fit", values={"teeth": "29,95"}),
    "32 teeth": Bad("no mesh line at order 32 .* 31 teeth would fit", values={"teeth": "32,95"}),
    "a wrong shaft": Bad(
        "no mesh line at order 31 .*correct teeth, tachometer_shaft", values={"tachometer_shaft": "3/2"}
    ),
    "sampled too slowly": Bad(r"rate=25600: .* samples a mesh .* expected 8 or more", values={"speed": 150}),
    "no rate": Bad("rate: .* does not say its sampling rate", lambda _: {"rate": None}, error=ConfigError),
    "a common factor": Bad(
        "teeth=32,96: with the common factor 32", values={"teeth": "32,96"}, error=ConfigError
    ),
}


@pytest.fixture(scope="module")
def record(simulated: Floats) -> Raw:
    return raw_of(simulated, seconds=13.4, seed=5, noise=1.0)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(record: Raw, tmp_path: Path, case: str) -> None:
    bad = BAD[case]
    path = saved(record, tmp_path / "record.npz", **bad.instead(record))
    with pytest.raises(bad.error, match=bad.message) as caught:
        converted(path, **bad.values)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value) or bad.error is ConfigError


def test_a_tachometer_may_list_times_have_more_pulses_or_turn_with_another_shaft(
    record: Raw, tmp_path: Path
) -> None:
    expected = converted(saved(record, tmp_path / "a.npz")).maps[0].map_RC
    pulses = pulse_times([record.tachometer_T], rate=record.rate, level=None)
    listed = converted(saved(record, tmp_path / "b.npz", tachometer=pulses)).maps[0].map_RC
    assert listed == pytest.approx(expected, abs=1e-6)
    ten = np.interp(np.arange(0, len(pulses) - 1, 0.1), np.arange(len(pulses)), pulses)
    many = converted(saved(record, tmp_path / "c.npz", tachometer=ten), pulses_per_turn=10).maps[0].map_RC
    slow = saved(record, tmp_path / "d.npz", tachometer=pulses[::3])
    third = converted(slow, tachometer_shaft="3").maps[0].map_RC
    for other in (many, third):
        assert np.corrcoef(other.ravel(), expected.ravel())[0, 1] > 0.99


def test_pulses_that_are_even_enough_are_accepted() -> None:
    check_pulses(np.cumsum(1 + 0.1 * np.random.default_rng(0).uniform(-1, 1, 100)), name="t")


# ---- the data root ----


def test_splits_share_a_scale_and_nothing_is_overwritten(record: Raw, tmp_path: Path) -> None:
    path, root, said = saved(record, tmp_path / "one.npz"), tmp_path / "maps", list[str]()
    (tmp_path / "empty").mkdir()

    def convert(split: Any, path: Path = path, **values: Any) -> Path:
        own = {key: values.pop(key) for key in list(values) if key in ("signal", "periods")}
        return hdmap(
            path, output=root, domain="A", split=split, settings=settings(**own), say=said.append, **values
        )

    with pytest.raises(ConfigError, match="scale=auto: domain_A has no maps in train/good"):
        convert("test/good")
    convert("train/good", condition="cold")
    louder = saved(record, tmp_path / "two.npz", vibration=2 * record.vibration_T)
    convert("test/fault", louder, condition="warm", start_s=60.0)
    train, fault = (tifffile.imread(root / f"domain_A/{s}/000000.tiff") for s in ("train/good", "test/fault"))
    assert (train.shape, train.dtype, train.max()) == ((31, 95), np.float32, 1.0)
    assert fault == pytest.approx(2 * train, rel=1e-5)
    assert (root / "conditions.csv").read_text().splitlines()[1:] == [
        "domain_A/train/good/000000.tiff,cold",
        "domain_A/test/fault/000000.tiff,warm",
    ]
    manifest = [line.split(",") for line in (root / "maps.csv").read_text().splitlines()]
    assert manifest[0][:4] == ["file", "start_s", "speed", "condition"]
    assert float(manifest[2][1]) == pytest.approx(60.0, abs=0.1)
    assert (root / "teeth.csv").read_text().splitlines()[:2] == ["row,column,tooth_1,tooth_2", "0,0,0,0"]
    assert "standard error of a cell" in said[-1]
    assert (root / "length.png").read_bytes().startswith(b"\x89PNG")
    for values, message in (
        ({}, "its maps are in .* already"),
        ({"path": louder, "signal": "none"}, "signal=none: domain_A was made with signal=difference"),
        ({"path": louder, "scale": 3.0}, "scale=3: domain_A was divided by"),
        ({"path": louder, "condition": "a b"}, "condition='a b': expected a word"),
        ({"path": tmp_path / "none"}, "no such file or folder"),
        ({"path": tmp_path / "empty"}, "no record in it"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            convert("train/good", **values)
    (root / "domain_A/test/good").mkdir()
    (root / "domain_A/test/good/mine.tiff").write_bytes(b"")
    with pytest.raises(LayoutError, match=r"1 images, 0 in maps.csv"):
        convert("test/good", louder)


def test_an_interrupted_conversion_is_as_if_it_had_not_been(
    record: Raw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    quiet = saved(record, tmp_path / "one.npz")
    louder = saved(record, tmp_path / "two.npz", vibration=2 * record.vibration_T)

    def convert(path: Path, *, periods: int) -> Path:
        own = settings(periods=periods)
        return hdmap(path, output=root, domain="A", split="train/good", settings=own, say=lambda _: None)

    def stop(path: Path, text: str) -> None:
        if path.name == "maps.csv":
            raise KeyboardInterrupt
        publish_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "publish_text", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(louder, periods=1)
    assert len(list(root.rglob("*.tiff"))) > 1
    convert(quiet, periods=4)  # another record and other settings: nothing is left of the first
    (file,) = root.rglob("*.tiff")
    assert tifffile.imread(file).max() == 1.0
    assert len((root / "maps.csv").read_text().splitlines()) == 2
    indicators_of = pd.read_csv(root / "indicators.csv")["file"]
    assert indicators_of.is_unique
    assert "unlisted" not in (root / "hdmap.json").read_text()
