"""What a study may change in a config; each value is suggested only where it does something."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from optuna import Trial
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dinomaly_hd.config.base import flatten, text_of
from dinomaly_hd.config.dinomaly import SegmentBottleneck, Segments, TopKLoss
from dinomaly_hd.config.presets import search_ranges
from dinomaly_hd.config.resolve import resolve_config
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import WITH_TOPK
from dinomaly_hd.errors import ConfigError, nearest

Native = bool | int | float
Point = Mapping[str, str]  # values by name as flags' text, without those that would do nothing
Build = Callable[[str], RunConfig]  # makes the run of a config's text, such as "F:q_percent=1"
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution

TOPK = "use_topk"
WITHOUT_TOPK = {topk: plain for plain, topk in WITH_TOPK.items()}
# A0's plain bottleneck is one whose segments are off, at element dropout .2 (spec/variants.md, Ablation).
AUTHORS = {"F": "F", "G": "G", "A0": "horizontal:disable_segment=true:elem_p=0.2"}


def dimensions() -> dict[str, Distribution]:
    """Return what can be searched, by name: what fields mark by ``Search``, as Optuna's distributions.

    Fractions are in hundredths, or by their logarithm.
    """
    found: dict[str, Distribution] = {TOPK: CategoricalDistribution([False, True])}  # no field
    ranges = search_ranges()
    parts = [*SegmentBottleneck.model_fields, *TopKLoss.model_fields]

    def place(name: str) -> tuple[bool, int]:  # switches first, since what else is suggested hangs on them
        return ranges[name][0] is not bool, parts.index(name) if name in parts else len(parts)

    for name in sorted(ranges, key=place):
        kind, (low, high, log) = ranges[name]
        if kind is bool:
            found[name] = CategoricalDistribution([False, True])
        elif kind is int:
            found[name] = IntDistribution(int(low), int(high), log=log)
        else:
            found[name] = FloatDistribution(low, high, log=log, step=None if log else 0.01)
    return found


DIMENSIONS = dimensions()


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched around a base config."""

    base: str  # text of the base config
    variant: str  # its own; ``use_topk`` may turn it into another one
    fixed: Point  # what the base's text changes in that variant and is not searched
    dimensions: Mapping[str, Distribution]  # what is searched
    build: Build  # makes the run of a config's text

    def suggest(self, trial: Trial) -> dict[str, str]:
        """Ask Optuna for a point; values on a logarithmic scale have three digits."""
        point: dict[str, str] = {}
        for name, dimension in self.dimensions.items():
            if name != TOPK and not _applies(name, flatten(self.build(self.config(point)).model)):
                continue
            match dimension:
                case CategoricalDistribution():
                    point[name] = text_of(trial.suggest_categorical(name, dimension.choices))
                case IntDistribution():
                    point[name] = str(trial.suggest_int(name, dimension.low, dimension.high))
                case FloatDistribution(low=low, high=high, step=step, log=log):
                    value = trial.suggest_float(name, low, high, step=step, log=log)
                    point[name] = f"{value:.3g}" if log else f"{value:.10g}"
        return point

    def config(self, point: Point) -> str:
        """Return a point as a config's text, such as "horizontal_topk:row_p=0.31:q_percent=1.2".

        What would do nothing is left out, so that two texts of one meaning are one run.
        """
        variant = self.variant
        if TOPK in point:
            plain = WITHOUT_TOPK.get(variant, variant)
            variant = WITH_TOPK.get(plain, plain) if point[TOPK] == "true" else plain
        known = flatten(self.build(variant).model)
        changes = {name: text for name, text in {**self.fixed, **point}.items() if name in known}
        parts = [f"{name}={text}" for name, text in changes.items() if _applies(name, {**known, **changes})]
        return ":".join([variant, *parts])

    def references(self) -> dict[str, dict[str, Native]]:
        """Return the base and the authors' settings that lie in the space, as Optuna's values by name."""
        known: dict[str, dict[str, Native]] = {}
        for name, text in AUTHORS.items():
            # Their own values, whatever flags are common to the study's runs.
            whole = _values_of(resolve_config(text, {"preset": "full"}))
            own = {key: whole[key] for key in self.dimensions if key in whole}
            config = self.config({key: text_of(value) for key, value in own.items()})
            if self._holds(own) and _values_of(self.build(config)) == whole:
                known[name] = own
        values = _values_of(self.build(self.base))
        base = {name: values[name] for name in self.dimensions if name in values}
        return known if base in known.values() or not self._holds(base) else {self.base: base, **known}

    def _holds(self, values: Mapping[str, Native]) -> bool:
        return all(
            isinstance(one, CategoricalDistribution) or one.low <= values.get(name, one.low) <= one.high
            for name, one in self.dimensions.items()
        )


def make_space(names: Sequence[str], *, base: str, build: Build, check: Callable[[RunConfig], None]) -> Space:
    """Return the space of some of ``DIMENSIONS`` around a base config; each must change something in it.

    ``check`` refuses a run whose settings do not fit each other: segments are no longer than it allows.
    """
    for name in names:
        if name not in DIMENSIONS:
            raise ConfigError(f"space={name!r}: not a name that can be searched.{nearest(name, DIMENSIONS)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"space={','.join(names)!r}: expected one or more names, each once")
    run = build(base)
    check(run)
    variant = run.model.variant
    usual, skipped = flatten(build(variant).model), {*names, "variant"}
    changed = {name: value for name, value in flatten(run.model).items() if value != usual.get(name, value)}
    space = Space(
        base=base,
        variant=variant,
        fixed={name: text_of(value) for name, value in changed.items() if name not in skipped},
        dimensions={name: dimension for name, dimension in DIMENSIONS.items() if name in names},
        build=build,
    )
    reachable = {name for name in DIMENSIONS if _can_matter(space, name)}
    for name in names:
        if name not in reachable:
            raise ConfigError(f"space={name}: changes nothing in config={base}.{nearest(name, reachable)}")
    return _with_fitting_segments(space, check) if "seg_len" in names else space


def _can_matter(space: Space, name: str) -> bool:
    """Tell whether some setting of the searched switches makes a name count."""
    if name == TOPK:
        return WITHOUT_TOPK.get(space.variant, space.variant) in WITH_TOPK
    switches = [{}, *({one: text} for one in (TOPK, "disable_segment") for text in ("false", "true"))]
    points = [{**one, **other} for one in switches for other in switches]
    tried = [point for point in points if set(point) <= set(space.dimensions)]
    return any(_applies(name, flatten(space.build(space.config(point)).model)) for point in tried)


def _values_of(run: RunConfig) -> dict[str, Native]:
    """Return all of a run that could be searched."""
    flat = flatten(run.model)
    values = {name: flat[name] for name in DIMENSIONS if _applies(name, flat)}
    return {TOPK: flat["variant"] in WITH_TOPK.values(), **values}


def _applies(name: str, flat: Mapping[str, object]) -> bool:
    if name not in flat:
        return False
    return name not in Segments.model_fields or text_of(flat.get("disable_segment", False)) == "false"


def _with_fitting_segments(space: Space, check: Callable[[RunConfig], None]) -> Space:
    """Return the space with segments no longer than the token grid is wide."""
    lengths = DIMENSIONS["seg_len"]
    assert isinstance(lengths, IntDistribution)
    high = lengths.high
    point = {"disable_segment": "false"} if "disable_segment" in space.dimensions else {}
    while high > lengths.low:
        try:
            check(space.build(space.config({**point, "seg_len": str(high)})))
            break
        except ConfigError:
            high -= 1
    return replace(space, dimensions={**space.dimensions, "seg_len": IntDistribution(lengths.low, high)})
