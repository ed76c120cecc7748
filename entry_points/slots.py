"""Flags of everything that runs jobs: where, and how many at once."""

from collections.abc import Mapping

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.flag_texts import AUTO, Option
from dinomaly_hd.jobs import LOCAL, Slots

SLOTS = Option(AUTO, "runs at once; auto: one a GPU, or one for two cores where there is none")
ENGINE = {
    "engine": Option(LOCAL, "local: this machine; ray: also others, with a Ray of its own or a cluster"),
    "ray_address": Option(AUTO, "HOST:PORT of a Ray cluster's head; auto: a Ray of its own"),
}


def slots_of(switches: Mapping[str, str], *, number: int | None) -> Slots:
    """Return where jobs run (on this machine, where ``switches`` hold no engine), and how many at once."""
    address = switches.get("ray_address", AUTO)
    return Slots(switches.get("engine", LOCAL), number, "" if address == AUTO else address)


def number_of_slots(text: str) -> int | None:
    """Return a number, None for ``auto``.

    Raises:
        ConfigError: It is neither.
    """
    if text != AUTO and (not text.isdecimal() or int(text) < 1):
        raise ConfigError(f"slots={text!r}: expected a whole number from 1 on, or {AUTO}")
    return None if text == AUTO else int(text)
