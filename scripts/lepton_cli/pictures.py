"""The pictures of a run: learning curve, epsilon per round, who holds what."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lepton_cli.run import Run
from lepton_cli.simulated_sites import dataset_of, split

BLUE, GREY, ORANGE, RED = "#1f5fa8", "#7a7a7a", "#d9822b", "#c0392b"
_MOST_BARS = 50


def draw_all(run: Run) -> dict[str, Path]:
    """Draws every picture of a run into its folder and returns their paths, by title."""
    pictures = {"Learning curve": _learning_curve(run), "Who holds what": _partition(run)}
    if run.settings.private:
        pictures["Epsilon per round"] = _epsilon(run)
    return pictures


def _learning_curve(run: Run) -> Path:
    figure, axes = new_figure(7.0, 4.0)
    rounds = [report.round for report in run.rounds]
    private = run.settings.private
    label = f"federated, epsilon {run.settings.privacy.epsilon:g}" if private else "federated"
    axes.plot(rounds, run.curve, color=BLUE, linewidth=2.2, marker="o", markersize=3, label=label)
    lines = {
        "pooled_without_privacy": ("pooled, no privacy", GREY, ":"),
        "pooled": ("pooled, same privacy" if private else "pooled", GREY, "--"),
    }
    for name, (text, color, style) in lines.items():
        if name in run.baselines:
            axes.axhline(run.baselines[name], color=color, linestyle=style, label=text)
    if run.baselines:
        local = list(run.baselines["local"].values())
        axes.axhline(float(np.mean(local)), color=ORANGE, linestyle="-.", label="each site alone")
        axes.axhspan(min(local), max(local), color=ORANGE, alpha=0.12, linewidth=0)
    axes.set_xlabel("round")
    axes.set_ylabel(f"{run.headline.title} on the server's test set")
    axes.set_title(f"{run.settings.task}: {run.settings.sites} sites")
    axes.set_ylim(top=run.headline.top)
    axes.legend(loc="lower right" if run.headline.higher else "upper right", frameon=False)
    return _save(figure, run, "learning_curve.png")


def _epsilon(run: Run) -> Path:
    figure, axes = new_figure(7.0, 3.0)
    rounds = [report.round for report in run.rounds]
    spent = [max(report.epsilon.values(), default=np.nan) for report in run.rounds]
    axes.step(rounds, spent, where="post", color=BLUE, linewidth=2.0, label="spent, worst site")
    target = run.settings.privacy.epsilon
    if target is not None:
        axes.axhline(target, color=RED, linestyle="--", label="target")
    axes.set_xlabel("round")
    axes.set_ylabel(f"epsilon at delta {run.settings.privacy.delta:g}")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", frameon=False)
    return _save(figure, run, "epsilon.png")


def _partition(run: Run) -> Path:
    settings = run.settings
    data, parts = dataset_of(settings), split(settings)
    shown = [parts.name(index) for index in range(min(len(parts), _MOST_BARS))]
    labels = data.train.labels.numpy()
    held = [parts[index] for index in range(len(shown))]
    counts = np.array([np.bincount(labels[rows], minlength=data.classes) for rows in held])
    figure, axes = new_figure(7.0, max(2.0, 0.28 * len(shown) + 1.0))
    left = np.zeros(len(shown))
    colors = colormaps["tab10"](np.arange(data.classes) % 10)
    for value in range(data.classes):
        width = counts[:, value]
        axes.barh(range(len(shown)), width, left=left, color=colors[value], label=str(value))
        left += width
    axes.set_yticks(range(len(shown)), shown, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("training records, by label (known in simulation only)")
    title = f"{settings.data.partition}"
    if len(parts) > len(shown):
        title += f", first {len(shown)} of {len(parts)} sites"
    axes.set_title(title)
    axes.legend(ncols=1, fontsize=7, frameon=False, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    return _save(figure, run, "partition.png")


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns an empty figure of the house's style, in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure: Figure, run: Run, name: str) -> Path:
    path = run.folder.path / name
    figure.savefig(path, dpi=130)
    return path
