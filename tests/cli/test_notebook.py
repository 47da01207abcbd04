"""The example notebook runs from top to bottom."""

import warnings
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "examples" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_example_notebook_runs(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's own packages deprecate one another
        from nbclient import NotebookClient

        notebook = nbformat.read(NOTEBOOK, as_version=4)
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=120, resources=resources).execute()
    outputs = "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "'finished'" in outputs
    assert "NOT PRIVATE" in outputs
    assert "torch.Size([1, 10])" in outputs
