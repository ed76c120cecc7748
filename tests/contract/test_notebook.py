"""The notebook of docs/ runs from first to last cell in an empty folder, and names the right tooth."""

import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[2]


def test_the_first_look_runs_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(ROOT / "docs/notebooks/first_look.ipynb", as_version=4)
    show_all = "from dinomaly_hd import progress; progress.LONG_S = 0"  # bars, however fast the machine is
    notebook.cells.insert(0, nbformat.v4.new_code_cell(show_all))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's transport
        # Sockets in the working directory: a port that was free may be another's when the kernel is up.
        told: dict[str, Any] = {"config": Config(KernelManager={"transport": "ipc"}), "startup_timeout": 600}
        NotebookClient(notebook, timeout=600, **told).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    assert "tooth 19" in said
    assert "images/s" in said, "a bar, of text where there are no widgets"
    assert "domain_C  100   100" in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert (tmp_path / "results/first_look/report/report.html").is_file()
    assert (tmp_path / "mlflow.db").is_file()
