"""One run from config to finished folder: check, train, evaluate, record."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from dinomaly_hd import provenance
from dinomaly_hd.config import RunConfig, TrainingConfig
from dinomaly_hd.experiments.checks import Ready, check
from dinomaly_hd.experiments.evaluate import evaluate
from dinomaly_hd.experiments.prepare import fill_bank, hooks, prepare, training_data
from dinomaly_hd.experiments.record import describe, record
from dinomaly_hd.experiments.work import at_work
from dinomaly_hd.runs.folder import Context, finished_runs, open_folder, read_results, read_state
from dinomaly_hd.runs.sync import complete_finished
from dinomaly_hd.training.loop import train


class Outcome(NamedTuple):
    """A finished run: its folder, its ``results.json`` as data, and its MLflow run if there is one."""

    folder: Path
    results: dict[str, Any]
    mlflow_run_id: str | None


def execute(run: RunConfig, context: Context) -> Outcome:
    """Train, evaluate and record one run; goes on with an interrupted one of the same configuration.

    A comparison's member (``context.folder``) that any run here has finished already, with the same
    configuration, data, weights and code, is not run again.

    Raises:
        DinomalyHDError: Whatever ended the run; its folder and its MLflow run say so.
    """
    torch.backends.cudnn.deterministic = True
    ready = check(run, context)
    done = _finished_before(ready, context) if context.folder and context.resume != "never" else None
    if done is not None:
        context.say(f"already finished: {done.folder}")
        return done
    with open_folder(
        context.result_dir,
        variant=run.model.variant,
        seed=run.seed,
        config_hash=ready.config_hash,
        resume=context.resume,
        folder=context.folder,
        wait_s=context.lock_wait_s,
        tick=context.guard.check,
    ) as folder:
        done = _finished_before(ready, context) if folder.finished else None
        if done is not None:
            return done
        with at_work(ready, context, folder) as work:
            describe(work)
            scorer = prepare(work)
            if isinstance(work.run.training, TrainingConfig):
                data, told = training_data(work, scorer), hooks(work)
                trained = train(scorer.detector, run=work.run, data=data, hooks=told, resume=work.checkpoint)
            else:
                trained = fill_bank(work, scorer)
            found = evaluate(work, scorer, trained)
            results = record(work, trained, found)
        return Outcome(folder.path, results, work.tracker.run_id)


def _finished_before(ready: Ready, context: Context) -> Outcome | None:
    """Return a finished run of this configuration and code, the comparison's own first.

    Its own is completed in MLflow, in case the process that finished it was killed before that was done.
    """
    assert context.folder is not None, "a run by itself gets a folder of its own"
    for place in (context.folder, context.result_dir):
        folder = finished_runs(place, code=provenance.code_digest()).get(ready.config_hash)
        if folder is not None:
            if folder == context.folder:
                complete_finished(folder, root=context.root, say=context.say)
            return Outcome(folder, read_results(folder) or {}, read_state(folder).get("mlflow_run_id"))
    return None
