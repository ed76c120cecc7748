"""The keys of conditions files: which family knows which, what a value may be, and the flag that it sets.

Sources: spec/protocols.md, "Conditions files"; spec/models.md; spec/variants.md, "Parameter names".
"""

from collections.abc import Iterator
from functools import cache
from itertools import combinations
from typing import NamedTuple

from dinomaly_hd.condition_files.kinds import Choice, Either, Kind, OrNull, Real, Switch, Text, Whole
from dinomaly_hd.condition_files.kinds_of_lists import Names, Numbers, Range, Size, Weights
from dinomaly_hd.config import flatten
from dinomaly_hd.flag_texts import HELP
from dinomaly_hd.presets import FAMILIES as MODELS
from dinomaly_hd.variants import VARIANTS, WITH_TOPK

FAMILIES = ("draem", "dinomaly", "patchcore", "draem_sevnet", "trivial")
TRAINED = ("draem", "dinomaly", "draem_sevnet")
WITH_ENCODER = ("dinomaly", "patchcore")
WITH_FAULTS = ("draem", "draem_sevnet")
WITH_MODEL = (*TRAINED, "patchcore")
FIELDS = ("model_type", "source_domain", "target_domains", "use_topk")
"""Keys that set no flag: what a condition is, and a switch that chooses another variant."""


class Key(NamedTuple):
    """A key: values allowed, families that use it, its flag, and a help text."""

    name: str
    kind: Kind
    families: tuple[str, ...]
    flag: str
    text: str


class Need(NamedTuple):
    """What another key must be (``default`` where it is not given) for a key to do anything."""

    other: str
    allowed: tuple[str, ...]
    default: str


def _same(*families: str, **kinds: Kind) -> Iterator[Key]:
    """Yield keys that are called like their flags."""
    for name, kind in kinds.items():
        yield Key(name, kind, families, name, HELP[name])


SHARE, ABOVE_0, COUNT, STEPS = Real(0, 1), Real(0, open_low=True), Whole(0), Whole(1)
DOMAIN = Text("domain_A", pattern=r"^[^.,/\\\s][^,/\\]*$", longest=64)
LINE = Text("text")
AUTO_OR_LAYERS = Either(Choice(("auto",)), Numbers(prefix="layer"))
GPU = Either(Choice(("auto", "cpu")), Whole(0, 255))
BLOCKS = Either(
    Numbers(),
    Text("last-half", pattern=r"^(last-half|[0-9]{1,3}(-[0-9]{1,3})?(,[0-9]{1,3}(-[0-9]{1,3})?)*)$"),
)
ENCODER = Text("dinov2reg_vit_base_14", pattern=r"^[A-Za-z0-9][A-Za-z0-9_./:-]*$", longest=200)

KEYS: tuple[Key, ...] = (
    Key("model_type", Choice(FAMILIES), FAMILIES, "", "model family"),
    Key("source_domain", DOMAIN, FAMILIES, "", "domain that is trained on, and tested"),
    Key("target_domains", Names(DOMAIN), FAMILIES, "", "domains that are tested only; absent: single domain"),
    Key("domains", Names(DOMAIN), FAMILIES, "domains", "one model of all these, instead of source_domain"),
    *_same(
        *FAMILIES, seed=Whole(0, 2**32 - 1), data_root=LINE, simulate_size=Choice(("tiny", "quick", "full"))
    ),
    *_same(*FAMILIES, simulate_seed=COUNT, conditions=Choice(("auto", "halves", "none")), num_workers=COUNT),
    *_same(*FAMILIES, val_split_ratio=Real(0, 1, open_high=True), eval_batch_size=STEPS, map_size=Size()),
    *_same(*FAMILIES, maps_per_group=COUNT, synthetic_copies=COUNT),
    *_same(*WITH_MODEL, image_size=Size(), crop=Either(Choice(("none",)), Size()), gpu=GPU),
    *_same(*WITH_MODEL, cache=Choice(("auto", "memory", "files", "off"))),
    # Gradient training.
    *_same(*TRAINED, precision=Choice(("32", "bf16"))),
    *_same(*TRAINED, max_epochs=STEPS, max_steps=STEPS, stop_step=COUNT, start_from=LINE, batch_size=STEPS),
    *_same(*TRAINED, optimizer=Choice(("adam", "adamw", "stable_adamw")), learning_rate=ABOVE_0),
    *_same(
        *TRAINED, final_rate_share=SHARE, warmup_steps=COUNT, lr_schedule_interval=Choice(("step", "epoch"))
    ),
    *_same(*TRAINED, weight_decay=Real(), gradient_clip=Real(), on_nonfinite=Choice(("stop", "skip"))),
    *_same(*TRAINED, checkpoint_interval=STEPS, val_check_interval=COUNT, early_stopping_patience=COUNT),
    *_same(*TRAINED, validate_on=Choice(("held_out", "source_test"))),
    Key("gradient_clip_val", Real(), TRAINED, "gradient_clip", HELP["gradient_clip"]),
    # Frozen encoders.
    *_same(*WITH_ENCODER, encoder=ENCODER, encoder_weights=LINE),
    Key("encoder_name", ENCODER, ("dinomaly",), "encoder", HELP["encoder"]),
    Key("backbone", ENCODER, ("patchcore",), "encoder", HELP["encoder"]),
    Key("batch_size", STEPS, ("patchcore",), "eval_batch_size", HELP["eval_batch_size"]),
    *_same("patchcore", layers=AUTO_OR_LAYERS, coreset_sampling_ratio=Real(0, 1, open_low=True)),
    *_same("patchcore", num_neighbors=STEPS, context=Either(Choice(("0",)), Numbers(low=1))),
    # DRAEM and DRAEM-SevNet.
    *_same("draem", image_score=Choice(("max", "top_share"))),
    *_same(*WITH_FAULTS, width=Real(0, 16, open_low=True), fault_source=Choice(("perlin", "patch", "band"))),
    *_same(*WITH_FAULTS, anomaly_probability=SHARE, anomaly_source_path=OrNull(LINE)),
    *_same(*WITH_FAULTS, patch_width_range=Range((20, 80)), patch_ratio_range=Range((0.35, 0.67))),
    *_same(*WITH_FAULTS, patch_count=STEPS, severity_max=ABOVE_0, map_rows=STEPS),
    *_same("draem_sevnet", severity_head_mode=Choice(("single_scale", "multi_scale"))),
    *_same("draem_sevnet", severity_head_pooling_type=Choice(("gap", "spatial_aware"))),
    *_same("draem_sevnet", severity_head_hidden_dim=STEPS, severity_head_spatial_size=Whole(1, 256)),
    *_same("draem_sevnet", severity_head_use_spatial_attention=Switch(), severity_weight=Real()),
    *_same(
        "draem_sevnet", severity_loss_type=Choice(("mse", "smooth_l1")), severity_weight_for_combination=SHARE
    ),
    *_same("draem_sevnet", score_combination=Choice(("simple_average", "weighted_average", "maximum"))),
    *_same("trivial", trivial_score=Choice(("max", "mean", "std", "contrast"))),
    # Dinomaly and its variants.
    Key("variant", Choice(tuple(VARIANTS)), ("dinomaly",), "variant", "Dinomaly variant"),
    Key("use_topk", Switch(), ("dinomaly",), "", "true: the variant with the TopK loss"),
    Key("remove_class_token", Switch("remove", "keep"), ("dinomaly",), "class_token", HELP["class_token"]),
    *_same("dinomaly", class_token=Choice(("keep", "remove")), target_layers=AUTO_OR_LAYERS),
    *_same("dinomaly", decoder_depth=Whole(2, 100, even=True), border=Choice(("zero", "reflect"))),
    *_same(
        "dinomaly", row_context=COUNT, bottleneck_dropout=SHARE, row_p=SHARE, seg_len=STEPS, seg_drop_p=SHARE
    ),
    *_same("dinomaly", elem_p=SHARE, disable_segment=Switch(), decoder_blocks=BLOCKS, decoder_heads=SHARE),
    *_same("dinomaly", keys=Switch(), decoder_warmup=COUNT, row_radius=Either(Choice(("full",)), COUNT)),
    *_same("dinomaly", discard_final=SHARE, discard_warmup=COUNT, discard_factor=SHARE, gem_factor=SHARE),
    *_same("dinomaly", gem_p=ABOVE_0, focal_gamma=Real(), ape_scale=Real(), aux_weight=Real()),
    *_same("dinomaly", aux_score_weight=Real(), scale_weights=Either(Choice(("learned",)), Weights())),
    *_same("dinomaly", q_percent=Real(0, 100, open_low=True), q_warmup=COUNT, tail_context=COUNT),
    *_same("dinomaly", topk_scope=Choice(("batch", "sample", "domain"))),
)
"""A name occurs once for each family."""

USED_WITH: dict[str, tuple[str, tuple[str, ...]]] = {
    "anomaly_source_path": ("fault_source", ("perlin",)),
    "map_rows": ("fault_source", ("band",)),
    **dict.fromkeys(
        ("patch_width_range", "patch_ratio_range", "patch_count", "severity_max"),
        ("fault_source", ("patch",)),
    ),
    **dict.fromkeys(
        ("severity_head_spatial_size", "severity_head_use_spatial_attention"),
        ("severity_head_pooling_type", ("spatial_aware",)),
    ),
    "severity_weight_for_combination": ("score_combination", ("weighted_average",)),
    **dict.fromkeys(("row_p", "seg_len", "seg_drop_p"), ("disable_segment", ("false",))),
}
"""Keys that do something only where another key has one of some values."""


@cache
def keys_of(family: str) -> dict[str, Key]:
    """Return the keys of a family by name."""
    return {key.name: key for key in KEYS if family in key.families}


@cache
def families_of(name: str) -> tuple[str, ...]:
    """Return the families that use a key."""
    return tuple(family for family in FAMILIES if name in keys_of(family))


@cache
def needs_of(family: str) -> dict[str, tuple[Need, ...]]:
    """Return for each key of a family what it needs of others; for Dinomaly the variants that have it."""
    defaults = {name: str(value).lower() for name, value in flatten(MODELS[family]()).items()}
    defaults.setdefault("disable_segment", "false")
    needs: dict[str, tuple[Need, ...]] = dict.fromkeys(keys_of(family), ())
    for name, (other, allowed) in USED_WITH.items():
        if name in needs:
            needs[name] += (Need(other, allowed, defaults[other]),)
    if family == "dinomaly":
        for name, takers in _takers().items():
            needs[name] += (Need("variant", takers, defaults["variant"]),)
    return {name: each for name, each in needs.items() if each}


def _takers() -> dict[str, tuple[str, ...]]:
    """Return the Dinomaly keys that not every variant has, each with its variants."""
    flats = {variant: flatten(model()) for variant, model in VARIANTS.items()}
    owned = {name for flat in flats.values() for name in flat}
    takers = {
        key.name: tuple(variant for variant, flat in flats.items() if key.flag in flat)
        for key in keys_of("dinomaly").values()
        if key.flag in owned
    }
    some = {name: variants for name, variants in takers.items() if len(variants) < len(VARIANTS)}
    return {**some, "use_topk": tuple(WITH_TOPK)}


@cache
def exclusive(family: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs of keys of which a condition may have one: two names of a flag, or two ways."""
    known = keys_of(family)
    same = [
        (one.name, other.name)
        for one, other in combinations(known.values(), 2)
        if one.flag == other.flag and one.flag
    ]
    ways = [("max_epochs", "max_steps"), ("domains", "source_domain"), ("domains", "target_domains")]
    return tuple((one, other) for one, other in (*same, *ways) if one in known and other in known)
