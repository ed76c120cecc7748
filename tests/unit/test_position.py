"""What knows a pixel's place: scaling by the normals there, PatchCore's radius, the named tooth."""

import numpy as np
import pandas as pd
import pytest
import torch

from dinomaly_hd.config.families import PatchCoreConfig
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.evaluation.pointing import is_right, named_teeth, percentiles, where_text
from dinomaly_hd.models.networks import PositionScaling
from dinomaly_hd.models.patchcore.detector import PatchCore
from dinomaly_hd.trivial import Scan, signature_share
from tests.unit.test_patchcore import GRID, encoded, patchcore


def test_scaling_is_the_deviation_from_the_normals_at_each_place() -> None:
    normals = torch.rand(30, 5, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    scaling = PositionScaling()
    scaling.fit(normals)
    logs = np.log(normals.double().numpy())
    logs -= np.median(logs, axis=(1, 2), keepdims=True)
    wanted = 0.25 + 0.084 * (logs - logs.mean(axis=0)) / logs.std(axis=0)
    np.testing.assert_allclose(scaling(normals).numpy(), wanted, atol=1e-5)
    assert torch.equal(scaling(normals[3:4])[0], scaling(normals)[3])
    other = PositionScaling()
    other.load_state_dict(scaling.state_dict())
    assert torch.equal(other(normals), scaling(normals))
    scaling.fit(normals - 0.5)  # about half of the values are below 0
    assert not scaling.logarithm
    assert torch.isfinite(scaling(normals - 0.5)).all()


def ring(a: int, b: int, length: int) -> int:
    return min(abs(a - b), length - abs(a - b))


@pytest.mark.parametrize("radius", [0, 2])
def test_neighbours_come_from_the_same_place(radius: int) -> None:
    detector = patchcore(position_radius=str(radius), coreset_sampling_ratio=1.0, num_neighbors=1)
    detector.fit_bank([encoded(3, seed=0), encoded(2, seed=1)])
    query = encoded(1, seed=9)
    tokens = query[0].flatten(1).T
    rows, columns = GRID
    wanted = []
    for place, token in enumerate(tokens):
        near = [
            bank
            for bank, at in zip(detector.bank, detector.place.tolist(), strict=True)
            if ring(at // columns, place // columns, rows) <= radius
            and ring(at % columns, place % columns, columns) <= radius
        ]
        assert len(near) == 5 * (2 * radius + 1) ** 2
        wanted.append(min(float((token - one).norm()) for one in near))
    assert detector.score(query).score_B.item() == pytest.approx(max(wanted), rel=1e-6)
    other = patchcore(position_radius=str(radius), num_neighbors=1)
    other.load_state_dict(detector.state_dict())
    assert torch.equal(other.score(query).score_B, detector.score(query).score_B)


def test_a_place_without_neighbours_is_refused() -> None:
    detector: PatchCore = patchcore(position_radius="0", coreset_sampling_ratio=0.01)
    with pytest.raises(
        ConfigError, match="position_radius=0: the bank has no token near row 0, column 0 of 10x25"
    ):
        detector.fit_bank([encoded(2, seed=0)])
    assert "place" not in patchcore().state_dict()
    assert PatchCoreConfig().position_radius == "full"


def test_the_named_tooth_is_the_row_that_rises_most_and_its_columns_may_turn() -> None:
    maps = np.zeros((3, 6, 20))
    maps[0, 2, 4:9] = 1.0
    maps[1, 5, [18, 19, 0, 1]] = 2.0
    usual = np.zeros(6)
    found = named_teeth(maps, usual_h=usual, top=10, left=100)
    assert found.iloc[:2].to_numpy().tolist() == [[12, 104, 108], [15, 118, 101]]
    assert found.iloc[2].isna().all()
    usual[5] = 5.0  # as bright in every normal map
    assert named_teeth(maps[1:2] + usual[:, None], usual_h=usual)["tooth"].tolist() == [5]
    assert named_teeth(maps[:1] + usual[:, None], usual_h=usual)["tooth"].tolist() == [2]
    mask = np.zeros((6, 20), bool)
    mask[0] = True
    assert [is_right(row, mask) for row in (5, 0, 1, 2, pd.NA)] == [True, True, True, False, False]


def test_percentile_and_words() -> None:
    assert percentiles(np.array([0.0, 2.5, 9.0]), [3, 1, 2, 4]).tolist() == [0, 50, 100]
    assert np.isnan(percentiles(np.array([1.0]), [])).all()
    row = {"tooth": 12, "first_column": 30, "last_column": 71, "normal_percentile": 98.0}
    assert where_text(row) == "tooth 12, columns 30-71, above 98 % of normals"
    assert where_text({**row, "tooth": pd.NA, "normal_percentile": np.nan}) == ""


def test_scan_is_the_largest_standardised_sum_over_an_interval() -> None:
    draw = np.random.default_rng(0)
    normals, image = np.exp(draw.normal(size=(20, 4, 30))), np.exp(draw.normal(size=(4, 30)))
    logs = np.log(normals) - np.log(normals).mean(axis=(1, 2), keepdims=True)
    z = (np.log(image) - np.log(image).mean() - logs.mean(axis=0)) / logs.std(axis=0)
    wanted = max(
        sum(row[(start + k) % 30] for k in range(length)) / np.sqrt(length)
        for row in z
        for length in (8, 12, 16, 24, 30)
        for start in range(30)
    )
    assert Scan.fit(normals).score(image[None])[0] == pytest.approx(wanted, rel=1e-12)


def test_the_share_of_a_signature_is_that_of_the_variance() -> None:
    draw = np.random.default_rng(1)
    signature, noise = draw.normal(0, 0.5, (10, 40)), draw.normal(0, 1, (300, 10, 40))
    assert signature_share(np.exp(signature + noise)) == pytest.approx(
        signature.var() / (signature.var() + 1), abs=0.005
    )
    assert signature_share(np.exp(noise)) < 0.005
    assert signature_share(np.ones((3, 4, 5))) == 0
