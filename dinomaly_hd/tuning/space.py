"""What a study may change in a config; each value is suggested only where it does something."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dinomaly_hd.config import RunConfig, Segments, flatten, text_of
from dinomaly_hd.config.variants import WITH_TOPK
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.tuning.dimensions import DIMENSIONS, REFERENCES, TOPK, Dimension, Native, Point, Whole

if TYPE_CHECKING:
    from optuna import Trial

Build = Callable[[str], RunConfig]
"""Makes the run of a config's text, such as "F:q_percent=1"."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched around a base config.

    Attributes:
        base: Text of the base config.
        variant: The base's; ``use_topk`` may turn it into another one.
        fixed: What the base's text changes in that variant and is not searched.
        dimensions: What is searched.
        build: Makes the run of a config's text.
    """

    base: str
    variant: str
    fixed: Point
    dimensions: Mapping[str, Dimension]
    build: Build

    def suggest(self, trial: "Trial") -> dict[str, str]:
        """Ask Optuna for a point."""
        point: dict[str, str] = {}
        for name, dimension in self.dimensions.items():
            if name == TOPK or self._does_something(name, point):
                point[name] = dimension.suggest(trial, name)
        return point

    def config(self, point: Point) -> str:
        """Return a point as a config's text, such as "horizontal_topk:row_p=0.31:q_percent=1.2".

        What would do nothing is left out, so that two texts of one meaning are one run.
        """
        variant = self._variant(point)
        known = flatten(self.build(variant).model)
        changes = {name: text for name, text in {**self.fixed, **point}.items() if name in known}
        flat = {**known, **changes}
        parts = [f"{name}={text}" for name, text in changes.items() if _applies(name, flat)]
        return ":".join([variant, *parts])

    def references(self) -> dict[str, Point]:
        """Return the base and the authors' settings that lie in the space, as points by name."""
        known: dict[str, Point] = {
            name: self._own(point) for name, point in REFERENCES.items() if self._holds(point)
        }
        base = self._base_point()
        inside = all(self.dimensions[name].holds(text) for name, text in base.items())
        return known if base in known.values() or not inside else {self.base: base, **known}

    def native(self, point: Point) -> dict[str, Native]:
        """Return a point as Optuna's values; what is not searched is left out."""
        return {
            name: dimension.native(point[name])
            for name, dimension in self.dimensions.items()
            if name in point
        }

    def _own(self, point: Point) -> dict[str, str]:
        return {
            name: text_of(dimension.native(point[name]))
            for name, dimension in self.dimensions.items()
            if name in point
        }

    def _base_point(self) -> dict[str, str]:
        flat = flatten(self.build(self.base).model)
        point = {name: text_of(flat[name]) for name in self.dimensions if _applies(name, flat)}
        topk = {TOPK: text_of(self.variant in WITH_TOPK.values())} if TOPK in self.dimensions else {}
        return {**topk, **point}

    def _holds(self, point: Point) -> bool:
        own = self._own(point)
        if not all(self.dimensions[name].holds(text) for name, text in own.items()):
            return False
        if TOPK in point and TOPK not in own and self._variant(point) != self.variant:
            return False
        flat = flatten(self.build(self.config(own)).model)
        others = {name: text for name, text in point.items() if name not in own and name != TOPK}
        return all(
            name in flat and DIMENSIONS[name].native(text) == flat[name] for name, text in others.items()
        )

    def _variant(self, point: Point) -> str:
        if TOPK not in point:
            return self.variant
        plain = _without_topk(self.variant)
        return WITH_TOPK.get(plain, plain) if point[TOPK] == "true" else plain

    def _does_something(self, name: str, point: Point) -> bool:
        flat = flatten(self.build(self.config(point)).model)
        return _applies(name, flat)


def make_space(names: Sequence[str], *, base: str, build: Build, check: Callable[[RunConfig], None]) -> Space:
    """Return the space of some names around a base config.

    Args:
        names: Of ``DIMENSIONS``.
        base: A config's text, such as "F" or "decoder_dropout:decoder_heads=1".
        build: Makes the run of a config's text.
        check: Refuses a run whose settings do not fit each other; segments are no longer than it allows.

    Raises:
        ConfigError: An unknown name, a name twice, or one that changes nothing in the base.
    """
    for name in names:
        if name not in DIMENSIONS:
            raise ConfigError(f"space={name!r}: not a name that can be searched.{nearest(name, DIMENSIONS)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"space={','.join(names)!r}: expected one or more names, each once")
    run = build(base)
    check(run)
    model, variant = flatten(run.model), run.model.variant
    usual = flatten(build(variant).model)
    fixed = {name: text_of(value) for name, value in model.items() if name in usual and value != usual[name]}
    fixed = {name: text for name, text in fixed.items() if name not in (*names, "variant")}
    space = Space(
        base=base,
        variant=variant,
        fixed=fixed,
        dimensions={name: dimension for name, dimension in DIMENSIONS.items() if name in names},
        build=build,
    )
    reachable = {name for name in DIMENSIONS if _can_matter(space, name)}
    for name in names:
        if name not in reachable:
            raise ConfigError(f"space={name}: changes nothing in config={base}.{nearest(name, reachable)}")
    return _with_fitting_segments(space, check)


def _can_matter(space: Space, name: str) -> bool:
    """Tell whether some setting of the searched switches makes a name count."""
    if name == TOPK:
        return _without_topk(space.variant) in WITH_TOPK
    switches = [{}, *({one: text} for one in (TOPK, "disable_segment") for text in ("false", "true"))]
    points = [{**one, **other} for one in switches for other in switches]
    tried = [point for point in points if set(point) <= set(space.dimensions)]
    return any(_applies(name, flatten(space.build(space.config(point)).model)) for point in tried)


def _applies(name: str, flat: Mapping[str, object]) -> bool:
    if name not in flat:
        return False
    return name not in Segments.model_fields or text_of(flat.get("disable_segment", False)) == "false"


def _with_fitting_segments(space: Space, check: Callable[[RunConfig], None]) -> Space:
    """Return the space with segments no longer than the token grid is wide."""
    lengths = space.dimensions.get("seg_len")
    if not isinstance(lengths, Whole):
        return space
    point = {"disable_segment": "false"} if "disable_segment" in space.dimensions else {}
    for high in range(lengths.high, lengths.low, -1):
        try:
            check(space.build(space.config({**point, "seg_len": str(high)})))
        except ConfigError:
            continue
        break
    else:
        high = lengths.low
    return replace(space, dimensions={**space.dimensions, "seg_len": Whole(lengths.low, high)})


def _without_topk(variant: str) -> str:
    return next((plain for plain, other in WITH_TOPK.items() if other == variant), variant)
