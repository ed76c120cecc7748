"""Studies: what is searched, where a study lies, who runs its trials, and what came of it (spec/tracking.md).

The only package that imports Optuna.
"""
