"""Let `mlflow run .` use the `.venv` that `make setup` made; the last step of `make setup`.

MLflow reads python_env.yaml, where there is one, before conda.yaml; it derives a name from what the file says
and makes an environment of that name, unless one exists. So the file names this checkout's lock file, and the
name is a link to this checkout's `.venv`: checkouts and lock files never get each other's packages.
"""

import os
import platform
from pathlib import Path

FILE = "python_env.yaml"
TEXT = """\
# Written by `make setup`: MLflow finds .venv under the name that it derives from this text.
python: "{python}"
dependencies:
  - "-r {lock}"
"""


def lay(root: Path) -> Path:
    """Write python_env.yaml into a checkout, link its `.venv` where MLflow looks, and return the link."""
    # MLflow has no public name for this; the lock file holds the version, and a test runs the command.
    from mlflow.environment_variables import MLFLOW_ENV_ROOT
    from mlflow.utils.environment import _PythonEnv
    from mlflow.utils.virtualenv import _get_virtualenv_name

    text = TEXT.format(python=platform.python_version(), lock=root / "requirements.lock")
    (root / FILE).write_text(text)
    asked_for = _PythonEnv.from_yaml(root / FILE)  # type: ignore[no-untyped-call]
    name = _get_virtualenv_name(asked_for, root)  # type: ignore[no-untyped-call]
    link: Path = Path(MLFLOW_ENV_ROOT.get()) / name  # type: ignore[no-untyped-call]
    if link.is_dir() and not link.is_symlink():
        return link  # MLflow made it from the same lock file
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f"{name}.{os.getpid()}")
    fresh.symlink_to(root / ".venv")
    fresh.replace(link)
    return link


if __name__ == "__main__":
    print(f"`mlflow run .` uses .venv, by way of {lay(Path.cwd())}")
