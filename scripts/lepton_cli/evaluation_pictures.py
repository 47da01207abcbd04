"""The pictures of an evaluation: curves, confusion matrix, calibration, predicted against true."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lepton_cli.pictures import BLUE, GREY, ORANGE, new_figure

Points = tuple[NDArray[np.float64], NDArray[np.float64]]

_MOST_CURVES = 10
_MOST_WRITTEN = 12  # classes of a confusion matrix whose cells are written out
_MOST_TICKS = 25
_MOST_POINTS = 5000


def draw_roc(curves: Mapping[str, Points], title: str, path: Path) -> None:
    """Draws ROC curves.

    Args:
        curves: by name for the legend: false and true positive rates, from (0, 0) to (1, 1).
        title: of the picture.
        path: of the PNG file to write.
    """
    figure, axes = new_figure(5.2, 5.0)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="guessing")
    _curves(axes, curves)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.set_title(title)
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def draw_precision_recall(
    curves: Mapping[str, Points], title: str, path: Path, guessing: float | None = None
) -> None:
    """Draws precision-recall curves.

    Args:
        curves: by name for the legend: recall and precision, from the highest scores down.
        title: of the picture.
        path: of the PNG file to write.
        guessing: precision of guessing, which is the share of positives.
    """
    figure, axes = new_figure(5.2, 5.0)
    if guessing is not None:
        axes.axhline(guessing, color=GREY, linestyle="--", linewidth=1.2, label="guessing")
    _curves(axes, curves)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_title(title)
    axes.set_aspect("equal")
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def draw_confusion(counts: NDArray[Any], names: Sequence[str], title: str, path: Path) -> None:
    """Draws a confusion matrix, shaded by the share of each true class.

    Args:
        counts: by true and predicted class, none below 0; shape [classes, classes].
        names: of the classes.
        title: of the picture.
        path: of the PNG file to write.
    """
    classes = len(names)
    size = float(np.clip(0.55 * classes + 2.2, 4.2, 9.0))
    figure, axes = new_figure(size + 0.8, size)
    held = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, held, out=np.zeros(counts.shape), where=held > 0)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    if classes <= _MOST_WRITTEN:
        # Each number has to fit into its cell, also ten thousands of them.
        digits = len(f"{counts.max(initial=0):.0f}")
        font = min(10.0, 80.0 * (size - 1.6) / classes / max(digits, 3))
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": font}
            axes.text(column, row, f"{count:.0f}", color=color, **place)
    ticks = range(0, classes, -(-classes // _MOST_TICKS))
    shown = [names[tick] for tick in ticks]
    slanted = max(map(len, shown)) > 3 and classes > 2
    turn: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, shown, fontsize=8, **(turn if slanted else {}))
    axes.set_yticks(ticks, shown, fontsize=8)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046, pad=0.03)
    # The layout leaves no room for the names beside square axes.
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.1)


def draw_calibration(
    count: NDArray[np.float64],
    confidence: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    title: str,
    path: Path,
) -> None:
    """Draws how often predictions of some confidence are right, and how many there are.

    Args:
        count: predictions in each bin of the confidence.
        confidence: their mean confidence.
        accuracy: the share of them that is right.
        title: of the picture.
        path: of the PNG file to write.
    """
    figure, axes = new_figure(5.2, 5.0)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="calibrated")
    axes.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=2.0, label="gap")
    shares = count / max(float(count.sum()), 1.0)
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1.6)
    axes.scatter(
        confidence,
        accuracy,
        s=12 + 240 * shares,
        color=BLUE,
        alpha=0.85,
        zorder=3,
        linewidths=0,
    )
    axes.plot([], [], "o-", color=BLUE, markersize=5, label="model (area: how many)")
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.set_aspect("equal")
    axes.set_xlabel("confidence of the prediction")
    axes.set_ylabel("share that is right")
    axes.set_title(title)
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def draw_predictions(
    predicted: NDArray[Any], true: NDArray[Any], quantity: str, title: str, path: Path
) -> None:
    """Draws predictions of a quantity against its true values; of many, an even choice.

    Args:
        predicted: shape [n].
        true: shape [n].
        quantity: what it is, with its unit.
        title: of the picture.
        path: of the PNG file to write.
    """
    figure, axes = new_figure(5.2, 5.0)
    rows = np.unique(np.linspace(0, len(true) - 1, min(len(true), _MOST_POINTS)).astype(int))
    both = np.concatenate([predicted[rows], true[rows]])
    ends = (float(both.min(initial=np.inf)), float(both.max(initial=-np.inf)))
    if ends[0] < ends[1]:
        margin = 0.04 * (ends[1] - ends[0])
        ends = (ends[0] - margin, ends[1] + margin)
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1.2, label="exact")
        axes.legend(loc="upper left", frameon=False, fontsize=8)
    alpha = float(np.clip(150 / max(len(rows), 1), 0.12, 0.7))
    axes.scatter(true[rows], predicted[rows], s=12, color=BLUE, alpha=alpha, linewidths=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
    axes.set_aspect("equal")
    axes.set_xlabel(f"true {quantity}")
    axes.set_ylabel(f"predicted {quantity}")
    axes.set_title(title)
    figure.savefig(path, dpi=130)


def _curves(axes: Axes, curves: Mapping[str, Points]) -> None:
    """Draws up to ten curves on a unit square, one in the house's blue."""
    shown = list(curves.items())[:_MOST_CURVES]
    colors = [BLUE] if len(shown) == 1 else list(colormaps["tab10"](np.arange(len(shown))))
    for (name, (x, y)), color in zip(shown, colors, strict=True):
        axes.plot(x, y, color=color, linewidth=2.0 if len(shown) == 1 else 1.4, label=name)
    if len(curves) > len(shown):
        axes.plot([], [], " ", label=f"and {len(curves) - len(shown)} more")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
