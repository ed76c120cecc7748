"""All drills, by the number of their promise."""

from benchmarks.drills import (
    checkpoints,
    folders,
    hostile,
    images,
    kills,
    memory,
    metrics,
    order,
    poison,
    studies,
    tracking,
    typos,
)

MODULES = (
    *(kills, checkpoints, images, folders, metrics, tracking, studies),
    *(poison, hostile, typos, order, memory),
)
DRILLS = sorted((drill for module in MODULES for drill in module.DRILLS), key=lambda drill: drill.number)
