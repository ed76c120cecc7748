"""PatchCore: how far patch features are from a memory bank of normal ones."""

# B batch, C channels, h w token grid, Q = B * h * w, M bank tokens, D channels with context, H W pixels

from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

from dinomaly_hd.config.base import FULL_ROW, context_of
from dinomaly_hd.config.families import PatchCoreConfig
from dinomaly_hd.errors import ConfigError, NonFiniteError
from dinomaly_hd.models.detector import Detector, Prediction, resized
from dinomaly_hd.models.dinomaly.score import filtered, gaussian_kernel, row_context_mean
from dinomaly_hd.models.networks import PositionScaling, Preprocessing, scaling_of
from dinomaly_hd.models.patchcore.coreset import select_coreset
from dinomaly_hd.models.patchcore.features import PatchFeatures
from dinomaly_hd.models.patchcore.neighbours import Nearest, NeighbourIndex, direct_distance

# Of the map's Gaussian, pixels; a window of four sigmas to each side leaves out 6e-5 of its weight.
SIGMA, RADIUS = 4.0, 16


def with_context(features_BChw: Tensor, *, context: tuple[int, ...]) -> Tensor:
    """Append to each token, for each half-width k, the mean of itself and its k neighbours to either side.

    Fewer neighbours at the ends of a row; every mean is of the original features (B, C, h, w), so the result
    has C * (1 + len(context)) channels (spec/models.md, PatchCore).
    """
    return torch.cat([features_BChw, *(row_context_mean(features_BChw, k=k) for k in context)], dim=1)


def smooth(map_BHW: Tensor) -> Tensor:
    """Smooth with a Gaussian of sigma 4 pixels, reflected at the borders.

    A map of fewer than 17 rows or columns gets the largest window that can be reflected.
    """
    rows, columns = (_window(length) for length in map_BHW.shape[1:])
    along_rows_BHW = filtered(map_BHW, [columns], border="reflect")
    return filtered(along_rows_BHW, [[weight] for weight in rows], border="reflect")


@cache
def _window(length: int) -> list[float]:
    weights: list[float] = gaussian_kernel(2 * min(RADIUS, length - 1) + 1, SIGMA).sum(dim=0).tolist()
    return weights


def neighbourhood_weight(
    token_BD: Tensor, nearest_BD: Tensor, *, bank_MD: Tensor, num_neighbors: int
) -> Tensor:
    """Return the factor (B,) on the distance of an image's farthest token (PatchCore, CVPR 2022, eq. 7).

    1 - exp(d) / sum of exp(distance of the token to m) over the ``num_neighbors`` bank tokens m nearest to
    its nearest one, itself among them; d is the distance to that one. A single neighbour means no weight.
    """
    count = min(num_neighbors, len(bank_MD))
    if count == 1:
        return token_BD.new_ones(token_BD.shape[0])
    around_BK = direct_distance(nearest_BD, bank_MD).topk(count, largest=False).indices
    distance_BK = direct_distance(token_BD.unsqueeze(1), bank_MD[around_BK]).squeeze(1)
    distance_B = torch.linalg.vector_norm(token_BD - nearest_BD, dim=1)
    # d is the smallest of all, so the ratio is at most 1 / num_neighbors and nothing cancels.
    return 1 - torch.exp(distance_B - distance_BK.logsumexp(dim=1))


class PatchCore(Detector):
    """A memory bank: the coreset of all training images' patch features (spec/models.md, PatchCore).

    ``encode`` gives patch features (B, C, h, w) without context. The bank is the buffer ``bank`` (M, D),
    empty until ``fit_bank``; a loaded state brings its own size. ``seed`` is that of the coreset's projection
    and first centre.
    """

    bank: Tensor
    place: Tensor

    def __init__(
        self,
        config: PatchCoreConfig,
        *,
        encoder: PatchFeatures,
        preprocessing: Preprocessing,
        map_size: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__()
        self.config, self.context = config, context_of(config.context)
        self.encoder, self.preprocessing = encoder, preprocessing
        self.scaling = scaling_of(config.scaling)
        self.map_size, self.seed = map_size, seed
        self.register_buffer("bank", torch.empty(0, 0))
        if config.position_radius != FULL_ROW:  # each bank token's place in the grid
            self.register_buffer("place", torch.empty(0, dtype=torch.int64))
        self._index: NeighbourIndex | None = None
        self._near: tuple[Tensor, list[Tensor]] | None = None  # by place, of the bank whose places these are

    def fit_encoder(self, batches: Iterable[Tensor]) -> None:
        if isinstance(self.scaling, PositionScaling):
            self.scaling.fit(torch.cat(list(batches)))

    @torch.no_grad()
    def encode(self, images_BHW: Tensor) -> Tensor:
        # Always in full precision: what is cached, banked and scored must be the same.
        with torch.autocast(images_BHW.device.type, enabled=False):
            features_BChw: Tensor = self.encoder(self.preprocessing(self.scaling(images_BHW)))
        return features_BChw

    def _tokens(self, encoded: Tensor) -> Tensor:
        """Return tokens with context (Q, D), image by image, row by row."""
        features_BDhw = with_context(encoded.float(), context=self.context)
        return features_BDhw.permute(0, 2, 3, 1).flatten(0, 2)

    @torch.no_grad()
    def fit_bank(self, batches: Iterable[Tensor], *, tick: Callable[[], None] = lambda: None) -> None:
        """Fill the bank with the coreset of encoded training images (B, C, h, w).

        All tokens are held once in host memory; ``tick`` is called once per token chosen.
        """
        pieces: list[Tensor] = []
        height = width = 0
        for encoded in batches:
            *_, height, width = encoded.shape
            pieces.append(self._tokens(encoded).cpu())
        if not all(bool(torch.isfinite(piece).all()) for piece in pieces):
            raise NonFiniteError("patch features of training images are NaN or infinite; check the encoder")
        ratio, device = self.config.coreset_sampling_ratio, self.bank.device
        chosen_M = select_coreset(pieces, ratio=ratio, seed=self.seed, device=device, tick=tick).cpu()
        self.bank = torch.empty(len(chosen_M), pieces[0].shape[1])
        first = 0
        for piece in pieces:
            here_M = (chosen_M >= first) & (chosen_M < first + len(piece))
            self.bank[here_M] = piece[chosen_M[here_M] - first]
            first += len(piece)
        self.bank = self.bank.to(device)
        if self.config.position_radius != FULL_ROW:
            self.place = (chosen_M % (height * width)).to(device)
            for place, near_P in enumerate(self._near_places((height, width))):
                if not len(near_P):
                    raise ConfigError(
                        f"position_radius={self.config.position_radius}: the bank has no token near row "
                        f"{place // width}, column {place % width} of {height}x{width}; take a larger one, "
                        "or a larger coreset_sampling_ratio"
                    )

    @torch.no_grad()
    def score(self, encoded: Tensor) -> Prediction:
        assert len(self.bank), "fill the bank first"
        batch, _, *grid = encoded.shape
        with torch.autocast(encoded.device.type, enabled=False):
            tokens_QD = self._tokens(encoded)
            found = self._nearest(tokens_QD, grid=(grid[0], grid[1]))
            distance_BN = found.distance_Q.view(batch, -1)
            largest = distance_BN.max(dim=1)
            place_B = largest.indices + torch.arange(batch, device=encoded.device) * distance_BN.shape[1]
            weight_B = neighbourhood_weight(
                tokens_QD[place_B],
                self.bank[found.index_Q[place_B]],
                bank_MD=self.bank,
                num_neighbors=self.config.num_neighbors,
            )
            map_BHW = resized(distance_BN.view(batch, *grid), self.map_size)
            return Prediction(smooth(map_BHW), largest.values * weight_B)

    def _nearest(self, tokens_QD: Tensor, *, grid: tuple[int, int]) -> Nearest:
        if torch.compiler.is_exporting():  # a graph has no search whose length depends on the numbers
            distance_QM = direct_distance(tokens_QD, self.bank)
            if self.config.position_radius != FULL_ROW:
                distance_BNM = distance_QM.view(-1, grid[0] * grid[1], len(self.bank))
                distance_QM = distance_BNM.masked_fill(~self._are_near(grid), torch.inf).flatten(0, 1)
            return Nearest(*distance_QM.min(dim=1))
        if self.config.position_radius == FULL_ROW:
            if self._index is None or self._index.bank_MD is not self.bank:
                self._index = NeighbourIndex(self.bank)
            return self._index.nearest(tokens_QD)
        tokens_BND = tokens_QD.view(-1, grid[0] * grid[1], tokens_QD.shape[1])
        distances, indices = [], []
        for place, near_P in enumerate(self._near_places(grid)):
            nearest = direct_distance(tokens_BND[:, place], self.bank[near_P]).min(dim=1)
            distances.append(nearest.values)
            indices.append(near_P[nearest.indices])
        return Nearest(torch.stack(distances, dim=1).flatten(), torch.stack(indices, dim=1).flatten())

    def _near_places(self, grid: tuple[int, int]) -> list[Tensor]:
        """Return for each place the bank's tokens from within the radius; rows and columns are rings."""
        if self._near is None or self._near[0] is not self.place:
            self._near = self.place, [one.nonzero().flatten() for one in self._are_near(grid)]
        return self._near[1]

    def _are_near(self, grid: tuple[int, int]) -> Tensor:
        """Return which of the bank's tokens are near each place, (N, M)."""
        rows, columns = grid
        every = torch.arange(rows * columns, device=self.place.device)[:, None]
        down, along = (
            (self.place // columns - every // columns).abs(),
            (self.place - every).remainder(columns),
        )
        away = torch.maximum(torch.minimum(down, rows - down), torch.minimum(along, columns - along))
        return away <= int(self.config.position_radius)
