"""What a run's last model comes to on the server's test set: every figure, and pictures."""

from pathlib import Path

import numpy as np
import torch

from lepton_cli.evaluation_pictures import Points, draw_confusion, draw_predictions, draw_roc
from lepton_cli.run import Run
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.records import Dataset
from lepton_common.evaluation.scores import roc_curve
from lepton_common.evaluation.statistics import ClassStatistics
from lepton_common.tasks.catalog import Task, find_task

_MOST_CURVES = 10


def judge(run: Run) -> tuple[dict[str, float], dict[str, Path]]:
    """Returns all figures of a run's last model, and the pictures of it, by title.

    Nothing where the run has no model yet.

    Raises:
        DataError: the data is missing or invalid.
    """
    if not run.folder.final_model.exists():
        return {}, {}
    task, data = find_task(run.settings.task), run.settings.data
    dataset = load_dataset(task.dataset, data.root, data.prepare)
    model, test = run.model(), dataset.test
    figures = task.evaluate(model, test.features, test.labels, every=True)
    if dataset.label_kind not in ("class", "number"):
        return figures, {}
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in torch.split(test.features, 1000)])
    if dataset.label_kind == "number":
        return figures, {"Predicted against true": _predictions(run, task, outputs, test.labels)}
    return figures, _classes(run, dataset, outputs)


def _classes(run: Run, dataset: Dataset, outputs: torch.Tensor) -> dict[str, Path]:
    statistics = ClassStatistics(dataset.classes)
    found = statistics.of(outputs, dataset.test.labels)
    confusion, roc = (run.folder.path / name for name in ("confusion.png", "roc.png"))
    names = [str(label) for label in range(dataset.classes)]
    draw_confusion(statistics.confusion(found), names, run.settings.task, confusion)
    labels = [1] if dataset.classes == 2 else range(dataset.classes)[:_MOST_CURVES]
    curves: dict[str, Points] = {
        f"class {label}": roc_curve(statistics.score_counts(found, label)) for label in labels
    }
    draw_roc(curves, run.settings.task, roc)
    return {"Confusion matrix": confusion, "ROC curve": roc}


def _predictions(run: Run, task: Task, outputs: torch.Tensor, labels: torch.Tensor) -> Path:
    low, high, unit = task.scale
    made, true = (
        (low + high) / 2 + (high - low) / 2 * np.asarray(values, np.float64).ravel()
        for values in (outputs, labels)
    )
    path = run.folder.path / "predictions.png"
    draw_predictions(made, true, f"{task.label} ({unit})" if unit else task.label,
                     run.settings.task, path)  # fmt: skip
    return path
