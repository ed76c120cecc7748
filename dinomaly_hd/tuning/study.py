"""A study as all its workers know it: made once, joined by whoever has the same code and settings."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optuna
from optuna import Study
from optuna.study import StudyDirection

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.tuning.dimensions import Native
from dinomaly_hd.tuning.methods import Pruning, make_sampler
from dinomaly_hd.tuning.queue import fill
from dinomaly_hd.tuning.storage import Address, Storage, clear_outage, connect, exclusive

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}"
CODE, SETTINGS, PARENT = "code", "settings", "mlflow_parent"
SHOWN_DIFFERENCES = 3


class Terms(NamedTuple):
    """What all workers of a study must have alike: the code, and every setting by name."""

    code: str
    settings: Mapping[str, Any]


class Joined(NamedTuple):
    """A study with its database; ``parent`` is its MLflow run, None where MLflow did not answer."""

    study: Study
    storage: Storage
    address: Address
    parent: str | None


def check_name(name: str) -> None:
    """Refuse a name that cannot be a folder's.

    Raises:
        ConfigError: Says what is allowed.
    """
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"study={name!r}: expected 1 to 80 letters, digits, _ . -; a letter or digit first")


def join(
    name: str,
    address: Address,
    *,
    terms: Terms,
    trials: int,
    objectives: int,
    references: Mapping[str, Mapping[str, Native]],
    pruning: Pruning,
    heartbeat_s: int,
    parent: Callable[[str | None], str | None],
) -> Joined:
    """Make a study, or join the one of this name; only one process at a time does so.

    Args:
        name: Of the study.
        address: Where it lies.
        terms: Compared with those it was made on.
        trials: What its queue is filled up to.
        objectives: How many figures are maximised.
        references: Known settings, which stand first in the queue.
        pruning: When a trial is given up.
        heartbeat_s: Between two heartbeats.
        parent: Called with the study's MLflow run, None for a new study; returns the one it is to have.

    Raises:
        ConfigError: Its code or settings are others, or the database cannot be used.
        TrackingError: The database does not answer.
    """
    with exclusive(address), clear_outage(address):
        storage = connect(address, heartbeat_s=heartbeat_s)
        if name not in optuna.get_all_study_names(storage):
            storage.create_new_study([StudyDirection.MAXIMIZE] * objectives, name)
        study = optuna.load_study(
            study_name=name,
            storage=storage,
            sampler=make_sampler("random", seed=0),
            pruner=pruning.pruner,
        )
        known = study.user_attrs
        _check(name, terms, known)
        for key, value in ((CODE, terms.code), (SETTINGS, dict(terms.settings))):
            if key not in known:
                study.set_user_attr(key, value)
        run_id = parent(known.get(PARENT))
        if run_id is not None and run_id != known.get(PARENT):
            study.set_user_attr(PARENT, run_id)
        fill(study, trials=trials, references=references)
    return Joined(study, storage, address, run_id)


def _check(name: str, terms: Terms, known: Mapping[str, Any]) -> None:
    code = known.get(CODE, terms.code)
    if code != terms.code:
        raise ConfigError(
            f"study {name}: its trials were run by code {code}, here it is {terms.code}; use the same "
            "version on every machine, or another study"
        )
    theirs = known.get(SETTINGS, terms.settings)
    ours = terms.settings
    different = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    if different:
        shown = [f"{key}={theirs.get(key)} (here {ours.get(key)})" for key in different[:SHOWN_DIFFERENCES]]
        more = f" and {len(different) - len(shown)} more" if len(different) > len(shown) else ""
        raise ConfigError(f"study {name} has {', '.join(shown)}{more}; give the same, or another study")
