"""The plots of the simulation benchmark, from its rows alone."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lepton_cli.bench import Row
from lepton_cli.pictures import BLUE, GREY, ORANGE, new_figure

_REFERENCE = {
    "reference_bare": "bare PyTorch loop",
    "reference_fp32_vs_bare": "Lepton, inprocess",
    "reference_bf16_vs_bare": "Lepton, inprocess, bf16",
    "reference_processes_vs_bare": "Lepton, processes",
    "reference_ray_vs_bare": "Lepton, Ray",
    "reference_pfl": "pfl-research",
    "reference_flower": "Flower, Ray",
    "reference_nvflare": "NVFlare (cohort as clients)",
}
_SMALL = {
    "small_bare": "bare PyTorch loop",
    "small_kernel_vs_bare": "Lepton's training alone",
    "small_vectorized_vs_bare": "Lepton, vectorized",
    "small_inprocess_vs_bare": "Lepton, inprocess",
    "small_pfl": "pfl-research",
    "small_flower": "Flower, Ray",
}
_SIZES = re.compile(r"scaling_(population|cohort)_(\d+)(_peak)?")


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws what there are rows for and returns the pictures' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {row.name: row.value for row in rows if row.value is not None}
    paths = []
    for name, title, labels in (
        ("simulation_reference", "reference job: CNN, cohort of 50", _REFERENCE),
        ("simulation_small", "small models: MLP of 9,550 parameters, cohort of 500", _SMALL),
    ):
        if shown := {label: values[row] for row, label in labels.items() if row in values}:
            paths.append(_save(_bars(shown, title), folder / f"{name}.png"))
    if any(_SIZES.fullmatch(name) for name in values):
        paths.append(_save(_scaling(values), folder / "simulation_scaling.png"))
    return paths


def _bars(shown: Mapping[str, float], title: str) -> Figure:
    figure, axes = new_figure(7.0, 0.42 * len(shown) + 1.1)
    colors = [BLUE if name.startswith("Lepton") else GREY for name in shown]
    bars = axes.barh(list(shown), list(shown.values()), color=colors)
    axes.bar_label(bars, labels=[f"{value:.3g}" for value in shown.values()], padding=3)
    axes.invert_yaxis()
    if max(shown.values()) > 20 * min(shown.values()):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel("seconds a round (shorter is better)")
    axes.set_title(title)
    return figure


def _scaling(values: Mapping[str, float]) -> Figure:
    """Draws time and memory against population and cohort, side by side."""
    figure, first = new_figure(9.0, 3.6)
    first.remove()
    for place, (kind, fixed) in enumerate(
        (("population", "cohort of 50"), ("cohort", "population of 10,000")), start=1
    ):
        axes = figure.add_subplot(1, 2, place)
        axes.spines["top"].set_visible(False)
        axes.grid(alpha=0.25)
        memory = axes.twinx()
        memory.spines["top"].set_visible(False)
        _line(axes, _sizes(values, kind, peak=False), BLUE, "seconds a round")
        _line(memory, _sizes(values, kind, peak=True), ORANGE, "peak memory, MB")
        if kind == "population":  # over powers of ten; the cohort's line is to be straight
            axes.set_xscale("log")
        axes.set_xlabel(f"{kind} ({fixed})")
    return figure


def _sizes(values: Mapping[str, float], kind: str, *, peak: bool) -> list[tuple[int, float]]:
    found = []
    for name, value in values.items():
        match = _SIZES.fullmatch(name)
        if match and match[1] == kind and bool(match[3]) == peak:
            found.append((int(match[2]), value))
    return sorted(found)


def _line(axes: Axes, points: Sequence[tuple[int, float]], color: str, label: str) -> None:
    if not points:
        return
    axes.plot(*zip(*points, strict=True), color=color, linewidth=2.0, marker="o", markersize=4)
    axes.set_ylabel(label, color=color)
    axes.set_ylim(0, 1.2 * max(value for _, value in points))


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path
