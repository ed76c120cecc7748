"""Jobs: processes of their own on this machine's slots or on a Ray cluster, started again where they fail."""

from dinomaly_hd.jobs.job import Ended, Job, Slots, die_with_parent, read_job, write_progress
from dinomaly_hd.jobs.running import ENGINES, LOCAL, ONE_SLOT, check_engine, run_jobs

__all__ = [
    "ENGINES",
    "LOCAL",
    "ONE_SLOT",
    "Ended",
    "Job",
    "Slots",
    "check_engine",
    "die_with_parent",
    "read_job",
    "run_jobs",
    "write_progress",
]
