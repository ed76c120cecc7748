"""From ``--name value`` flags to a config: every name known, every value checked, the nearest offered."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from dinomaly_hd.config import ModelConfig, RunConfig, flatten, names_in, with_values
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.variants import ABLATION, CONFIG_SETS, PRESETS, VARIANTS, WITH_TOPK, bare_grid

AUTO = "auto"
DATA = ("data_root", "simulate_size", "simulate_seed", "domains", "conditions")
FIXED_IN_COMPARISONS = ("seed", "class_token", *DATA)


class Option(NamedTuple):
    """A flag beside the config: default as text, and help."""

    default: str
    help: str


OPTIONS: dict[str, Option] = {
    "preset": Option(AUTO, "auto: full where CUDA is present, quick elsewhere; full; quick"),
    "result_dir": Option("results", "folder of all run folders"),
    "experiment": Option("dinomaly-hd", "MLflow experiment (mlflow run chooses its own)"),
    "run_name": Option(AUTO, "auto: {variant}-{domains}-s{seed}"),
    "resume": Option(
        AUTO, "auto: go on with an interrupted run of the same configuration; never; or a run id or folder"
    ),
}
"""Flags that are not part of a run's config: name -> (default, help)."""

HELP: dict[str, str] = {
    "seed": "of initial weights, order, dropout and the held-out split",
    "bottleneck_dropout": "element dropout of the bottleneck, 0..1, constant",
    "row_p": "share of token rows with a dropped segment [.15-.25], or of masked rows, 0..1",
    "decoder_blocks": "decoder blocks whose values drop: last-half, 4-7 or 1,3 (from 0)",
    "decoder_heads": "share of a block's heads whose values drop, 0..1",
    "keys": "true: the features of the keys drop too",
    "decoder_warmup": "optimizer steps until row_p is reached in the decoder",
    "row_radius": "columns to either side that a query cannot read, or full: the whole row",
    "seg_len": "tokens of a segment, 1..grid width [2-3]",
    "seg_drop_p": "chance of each token of a segment to be dropped, 0..1 [.5-.7]",
    "elem_p": "element dropout beside the segments, 0..1 [0-.15]",
    "disable_segment": "true: no segments, only elem_p",
    "discard_final": "share of easy tokens after warm-up, 0..1",
    "discard_warmup": "optimizer steps until discard_final",
    "discard_factor": "share of gradient left to easy tokens, 0..1",
    "gem_factor": "share of gradient left to easy tokens of the pooled map, 0..1",
    "gem_p": "exponent of the generalised mean over groups, above 0",
    "focal_gamma": "exponent of the focal weights, 0 or more",
    "ape_scale": "how strongly the discard rate follows the angular power entropy, 0: not at all",
    "scale_weights": "learned, or a weight for each group such as .35,.65",
    "aux_weight": "of the band classifier's cross-entropy in the loss, 0 or more",
    "aux_score_weight": "of its logit in the image score, 0: not used",
    "q_percent": "final share of token distances in the loss, percent, (0, 100]",
    "q_warmup": "optimizer steps over which q falls from 100",
    "topk_scope": "what shares one tail: batch, sample, domain",
    "tail_context": "half-width k of the 1 x (2k+1) mean by which the tail is chosen, 0: off",
    "class_token": "keep (original) or remove class and register tokens",
    "decoder_depth": "decoder blocks, even",
    "row_context": "half-width k of the 1 x (2k+1) mean along rows before scoring, 0: off",
    "border": "zero (original) or reflect padding of the map's blur",
    "encoder": "dinov2reg_vit_{small,base,large}_14, efficientnet_lite0, or any timm name",
    "encoder_weights": "auto (hub, or the embedded package), hub, random, or a .safetensors/.pth file",
    "image_size": "resize to N or HEIGHTxWIDTH pixels",
    "crop": "centre crop to N or HEIGHTxWIDTH pixels, or none",
    "data_root": "folder with domain_A/train/good ..., or simulated",
    "simulate_size": "size of the simulated data: tiny, quick, full",
    "simulate_seed": "seed of the simulated data",
    "domains": "comma-separated, e.g. A,B,C,D or folder names",
    "train_domains": "all, or those of domains that are trained on; the others are tested only",
    "conditions": "cold and warm: auto, halves (first half of each test folder is cold), none",
    "val_split_ratio": "share of training normals held out for thresholds and val/loss, 0..1",
    "num_workers": "processes that read images; changes no result",
    "max_steps": "optimizer steps",
    "stop_step": "optimizer steps after which training ends; 0: max_steps, whose schedule it has anyhow",
    "start_from": "none, or the finished run (folder or MLflow id) whose weights are the start",
    "batch_size": "images of a step",
    "learning_rate": "after warm-up",
    "final_learning_rate": "at the last step",
    "warmup_steps": "optimizer steps of linear warm-up",
    "lr_schedule_interval": "step; epoch only repeats runs of old code",
    "weight_decay": "decoupled",
    "gradient_clip": "largest gradient norm",
    "on_nonfinite": "stop or skip when loss or gradient is NaN or infinite",
    "checkpoint_interval": "optimizer steps between checkpoints",
    "val_check_interval": "optimizer steps between val/loss on held-out normals, 0: never",
    "precision": "32 or bf16 (autocast)",
    "gpu": "auto, cpu, or the index of a GPU",
    "cache": "encode training images once: auto (if memory allows), memory, off",
    "eval_batch_size": "images encoded or scored at once",
    "map_size": "anomaly maps, N or HEIGHTxWIDTH pixels",
    "maps_per_group": "anomaly maps drawn per domain, label and rank (highest, threshold, lowest)",
}
"""Flags that set one value of the config, in the order of ``--help`` and MLproject."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse(entry_point: str, argv: Sequence[str], *, accepted: Mapping[str, str], doc: str) -> dict[str, str]:
    """Return the flags given, as text, under their names (``--row-p .2`` and ``--row_p .2`` alike).

    Args:
        entry_point: Named in ``--help``.
        argv: Arguments after the program's name.
        accepted: Name -> help.
        doc: First lines of ``--help``.

    Raises:
        ConfigError: Unknown flag (names the nearest), a flag without value, or a stray word.
    """
    parser = _Parser(
        prog=f"python -m entry_points.{entry_point}",
        description=doc,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, text in accepted.items():
        only_flag: dict[str, Any] = {"nargs": "?", "const": "true"} if text.startswith("true") else {}
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        parser.add_argument(*spellings, dest=name, metavar="VALUE", help=text.replace("%", "%%"), **only_flag)
    given, rest = parser.parse_known_args(list(argv))
    for word in rest:
        if word.startswith("--"):
            name = word[2:].split("=")[0].replace("-", "_")
            if name in HELP:
                raise ConfigError(_not_of(entry_point, name))
            raise ConfigError(f"unknown flag --{name}.{nearest(name, accepted)}")
        raise ConfigError(f"unexpected word {word!r}; write --name value")
    return vars(given)


def parse_options(
    entry_point: str, argv: Sequence[str], *, options: Mapping[str, Option], doc: str | None
) -> dict[str, str]:
    """Return every option's value as text, given or default, for an entry point without a run config.

    Raises:
        ConfigError: As ``parse``, or an option without a default is missing.
    """
    accepted = {name: option.help for name, option in options.items()}
    given = parse(entry_point, argv, accepted=accepted, doc=doc or "")
    values = {name: given.get(name, option.default) for name, option in options.items()}
    for name, value in values.items():
        if not value:
            raise ConfigError(f"--{name} is needed: {options[name].help}")
    return values


def accepted_by(variants: Sequence[str], *, switches: Mapping[str, Option]) -> dict[str, str]:
    """Return name -> help of everything that the entry point of these variants takes."""
    used = {name for variant in variants for name in flatten(PRESETS["full"](VARIANTS[variant]()))}
    own = {name: text for name, text in HELP.items() if name in used}
    return {**{name: option.help for name, option in {**OPTIONS, **switches}.items()}, **own}


def resolve(variant: str, values: Mapping[str, str]) -> RunConfig:
    """Return the config of a variant under its preset with the given values; ``auto`` leaves the preset's.

    Raises:
        ConfigError: A value breaks its rule, or belongs to another variant.
    """
    values = dict(values)
    if as_bool("use_topk", values.pop("use_topk", "false")):
        variant = WITH_TOPK[variant]
    return _resolve(VARIANTS[variant](), values, name=variant)


def resolve_config(text: str, values: Mapping[str, str]) -> RunConfig:
    """Return the config that a comparison calls ``text``, with its common values.

    ``text`` is a config of the ablation or a variant, class tokens removed, and what is changed in it:
    "F", "F:q_percent=1", "row_mask:row_radius=full:row_context=2".

    Raises:
        ConfigError: Unknown config, or a change that it does not have or allow.
    """
    name, *changes = text.split(":")
    if name not in ABLATION and name not in VARIANTS:
        raise ConfigError(f"config {name!r}: unknown.{nearest(name, [*ABLATION, *VARIANTS, *CONFIG_SETS])}")
    model = ABLATION[name]() if name in ABLATION else bare_grid(VARIANTS[name]())
    changed: dict[str, str] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if key not in HELP or not equals:
            raise ConfigError(f"config {text!r}: {change!r} is not name=value.{nearest(key, HELP)}")
        if key in FIXED_IN_COMPARISONS:
            raise ConfigError(f"config {text!r}: {key} is the same for all members of a comparison")
        changed[key] = value
    return _resolve(model, {**values, **changed}, name=text)


def config_names(text: str) -> tuple[str, ...]:
    """Return the configs of a comma-separated list, in which a set such as "directional" stands for its own.

    Raises:
        ConfigError: The list is empty, or a config occurs twice.
    """
    names = [name for part in names_in(text) for name in CONFIG_SETS.get(part, (part,))]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"configs={text!r}: expected one or more, each once; sets: {', '.join(CONFIG_SETS)}"
        )
    return tuple(names)


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Return the numbers of a comma-separated list such as seeds or steps, each once.

    Raises:
        ConfigError: Something else stands there.
    """
    parts = names_in(text)
    if not parts or len(set(parts)) < len(parts) or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"{name}={text!r}: expected whole numbers, each once, such as 42,43,44")
    return tuple(int(part) for part in parts)


def _resolve(model: ModelConfig, values: Mapping[str, str], *, name: str) -> RunConfig:
    run = PRESETS[preset_name(values.get("preset", AUTO))](model)
    known = flatten(run)
    chosen = {key: value for key, value in values.items() if key in HELP and value != AUTO}
    for key in chosen:
        if key not in known:
            raise ConfigError(_not_of(name, key))
    return with_values(run, chosen)


def _not_of(variant: str, name: str) -> str:
    takers = [other for other, model in VARIANTS.items() if name in flatten(model())]
    return f"{name} does not apply to {variant}, only to {', '.join(takers)}; leave it out"


def preset_name(given: str) -> Any:
    """Return the preset; ``auto`` asks torch for CUDA.

    Raises:
        ConfigError: Unknown preset.
    """
    if given == AUTO:
        import torch

        return "full" if torch.cuda.is_available() else "quick"
    if given not in PRESETS:
        raise ConfigError(f"preset={given!r}: unknown.{nearest(given, [AUTO, *PRESETS])}")
    return given


def as_bool(name: str, text: str) -> bool:
    """Return a switch's value.

    Raises:
        ConfigError: Neither true nor false.
    """
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ConfigError(f"{name}={text!r}: expected true or false")
    return known[text.lower()]


def project_defaults(variants: Sequence[str]) -> dict[str, str]:
    """Return the default that MLproject shows for each config value of an entry point.

    ``auto`` where the preset decides, or where only some of the entry point's variants have the value.
    """
    flats = [flatten(preset(VARIANTS[variant]())) for variant in variants for preset in PRESETS.values()]
    return {name: _shown(name, flats) for name in HELP if any(name in flat for flat in flats)}


def common_defaults(*, without: Sequence[str]) -> dict[str, str]:
    """Return the same for the values that every variant has, for a comparison of variants."""
    flats = [flatten(preset(model())) for model in VARIANTS.values() for preset in PRESETS.values()]
    common = [name for name in HELP if all(name in flat for flat in flats) and name not in without]
    return {name: _shown(name, flats) for name in common}


def _shown(name: str, flats: Sequence[Mapping[str, Any]]) -> str:
    seen = {str(flat.get(name, AUTO)) for flat in flats}
    value = seen.pop() if len(seen) == 1 else AUTO
    return {"True": "true", "False": "false"}.get(value, value)
