"""Make Health Data Maps of vibration and tachometer; --plan tells without data how long to record."""

from pathlib import Path
from typing import Literal

from dinomaly_hd.config.base import NonNegative, Positive, doc
from dinomaly_hd.config.resolve import OrAuto
from dinomaly_hd.config.vibration import RecordSettings, teeth_of
from dinomaly_hd.errors import ConfigError
from entry_points.common import Start, entry_point, launch, say

NONE = "none"


class Options(RecordSettings):
    input: str = doc(
        NONE,
        "a record (.npz, .npy, .mat, .tdms, .csv, .txt, .wav, .parquet), or a folder of them; where it holds "
        "train/good, test/good, test/fault, each is converted to its own",
    )
    domain: str = doc("A", "the maps' domain")
    split: Literal["train/good", "test/good", "test/fault"] = doc("train/good", "the maps' folder")
    condition: str = doc("all", "how it ran, such as cold; all: not known")
    scale: OrAuto[Positive] = doc(
        None, "what cells are divided by, kept for all splits; auto: the largest training value"
    )
    start: NonNegative = doc(0.0, "seconds at which the first record began, on the clock of trend")
    output: Path = doc(Path("data/hdmap"), "data root: a folder of domains; with plan, where a figure goes")
    plan: bool = doc(False, "only tell from teeth, speed, rate and noise how exact and how long")
    noise: Positive = doc(1.0, "with plan: the noise of a sample over the amplitude of a cell")
    severity: Positive = doc(0.3, "with plan: the raise of a row that is to be seen")


def convert(start: Start[Options]) -> None:
    options = start.options
    if options.plan:
        return tell(options, figure="output" in start.asked.given)
    if options.input == NONE:
        raise ConfigError("--input is needed: a record or a folder of records, or --plan without data")
    from dinomaly_hd.vibration.dataset import hdmap

    hdmap(
        Path(options.input),
        output=options.output,
        domain=options.domain,
        split=options.split,
        settings=RecordSettings(**options.model_dump(include=set(RecordSettings.model_fields))),
        condition=options.condition,
        scale=options.scale,
        start_s=options.start,
        say=say,
        tick=start.guard.check,
    )
    say(f"maps: {options.output}; next: --data_root {options.output} --domains {options.domain}")
    return None


def tell(options: Options, *, figure: bool) -> None:
    """Answer the question how long a record must be, as a sentence, and as a picture where one is to go."""
    if options.speed is None or options.rate is None:
        raise ConfigError("--plan needs --speed (turns of wheel 1 a second) and --rate (samples a second)")
    from dinomaly_hd.vibration.length import Plan
    from dinomaly_hd.vibration.teeth import Pair

    pair = Pair(*teeth_of(options.teeth))
    pair.check(fold=options.fold)
    plan = Plan.of(pair, speed=options.speed, rate=options.rate, noise=options.noise)
    say(plan.sentence(periods=options.periods, severity=options.severity))
    if not figure:
        return say("(a figure too: --output FOLDER)")
    from dinomaly_hd.vibration.dataset import LENGTH, save_plan

    save_plan(plan, options.output / LENGTH, periods=options.periods, severity=options.severity)
    return say(f"figure: {options.output / LENGTH}")


COMMAND, main = entry_point("hdmap", __doc__, Options, convert)

if __name__ == "__main__":
    raise SystemExit(launch(main))
