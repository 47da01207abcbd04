"""The picture of a sweep: what was reached against epsilon, or against what was varied."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from lepton_cli.pictures import BLUE, GREY, ORANGE, RED, new_figure
from lepton_cli.summary import upper
from lepton_cli.sweep.results import SEED, Group, Result, grouped, one_headline
from lepton_common.tasks.headlines import HEADLINES

_EPSILON = "privacy.epsilon"
_DIFFERS = 1.1  # what runs of one target spend differs by less
_WIDE = 20.0  # ratio from which an axis is logarithmic
_MOST_TICKS, _MOST_NAMED = 10, 12
_MARKERS = "osD^vPX*"


def draw_sweep(results: Sequence[Result], title: str, path: Path) -> bool:
    """Draws the finished runs of a sweep; returns False where there is nothing to draw.

    Points are means over seeds, with their standard deviation as error bars.
    """
    groups = [group for group in grouped(results) if group.reached is not None]
    if not groups:
        return False
    figure, axes = new_figure(7.0, 4.5)
    spent = [group.epsilon for group in groups if group.epsilon is not None]
    if spent and max(spent) > _DIFFERS * min(spent):
        _against_epsilon(axes, groups)
    else:
        _against_knob(axes, groups, results)
    most = max(group.runs for group in groups)
    over = f"\nmean and standard deviation of {most} seeds" if _has_bars(groups) else ""
    headline = HEADLINES.get(one_headline(results))
    what = headline.title if headline else "each task's own figure"
    axes.set_ylabel(f"{what} on the server's test set{over}")
    axes.set_title(title)
    figure.savefig(path, dpi=130)
    return True


def _against_epsilon(axes: Axes, groups: Sequence[Group]) -> None:
    private = [group for group in groups if group.epsilon is not None]
    ignored = {_EPSILON}
    if all(group.knobs.get("privacy") == private[0].knobs.get("privacy") for group in private):
        ignored.add("privacy")
    _lines(axes, private, ignored, lambda group: group.epsilon or 0.0)
    for group in groups:
        if group.epsilon is None and group.reached is not None:
            name = _named(group, {_EPSILON, "privacy"})
            label = f"no privacy, {name}" if name else "no privacy"
            axes.axhline(group.reached, color=GREY, linestyle="--", linewidth=1.2, label=label)
    values = [group.epsilon or 0.0 for group in private]
    axes.set_xlabel("epsilon spent, worst site")
    _numbers(axes, values, lambda value: upper(value, 2))
    _legend(axes)


def _against_knob(axes: Axes, groups: Sequence[Group], results: Sequence[Result]) -> None:
    knobs = [name for name in groups[0].knobs if len({group.knobs[name] for group in groups}) > 1]
    if not knobs:
        reached = [(r.knobs.get(SEED, ""), r.reached) for r in results if r.reached is not None]
        axes.plot([seed for seed, _ in reached], [a for _, a in reached], "o", color=BLUE)
        axes.set_xlabel(SEED if SEED in results[0].knobs else "")
        return
    name = knobs[0]
    axes.set_xlabel(name)
    values = list(dict.fromkeys(group.knobs[name] for group in groups))
    if all(_is_number(value) for value in values):
        _lines(axes, groups, {name}, lambda group: float(group.knobs[name]))
        _numbers(axes, [float(value) for value in values])
    else:
        _lines(axes, groups, {name}, lambda group: values.index(group.knobs[name]), join=False)
        slanted = max(map(len, values)) * len(values) > 60
        axes.set_xticks(range(len(values)), values, rotation=30 if slanted else 0,
                        ha="right" if slanted else "center")  # fmt: skip
        axes.set_xlim(-0.5, len(values) - 0.5)
    _legend(axes)


def _lines(
    axes: Axes,
    groups: Sequence[Group],
    ignored: set[str],
    place: Callable[[Group], float],
    *,
    join: bool = True,
) -> None:
    """Draws a line for each setting of what is not ignored; side by side where none are joined."""
    series: dict[str, list[Group]] = {}
    for group in groups:
        series.setdefault(_named(group, ignored), []).append(group)
    house = [BLUE, ORANGE, RED, GREY]
    colors = house if len(series) <= len(house) else list(colormaps["tab20"].colors)  # type: ignore[attr-defined]
    for number, (label, some) in enumerate(series.items()):
        ordered = sorted(some, key=place)
        shift = 0.0 if join else 0.5 * ((number + 0.5) / len(series) - 0.5)
        axes.errorbar(
            [place(group) + shift for group in ordered],
            [group.reached or 0.0 for group in ordered],
            yerr=[group.deviation or 0.0 for group in ordered] if _has_bars(groups) else None,
            color=colors[number % len(colors)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=2.0,
            linestyle="-" if join else "none",
            elinewidth=1.2,
            capsize=3,
            label=label or None,
        )


def _has_bars(groups: Sequence[Group]) -> bool:
    return any(group.deviation is not None for group in groups)


def _named(group: Group, ignored: set[str]) -> str:
    """Returns what tells a group from others, in words."""
    parts = [f"{k.rpartition('.')[2]} {v}" for k, v in group.knobs.items() if k not in ignored]
    return ", ".join(parts)


def _numbers(
    axes: Axes, values: Sequence[float], shown: Callable[[float], str] = "{:.3g}".format
) -> None:
    """Puts the ticks where the values are, if they are few and not too close."""
    low, high = min(values), max(values)
    wide = low > 0 and high / low >= _WIDE
    if wide:
        axes.set_xscale("log")
    ticks: list[float] = []
    for value in sorted(set(values)):
        room = value / ticks[-1] > 1.15 if ticks and wide else not ticks or (
            value - ticks[-1] > 0.04 * (high - low)
        )  # fmt: skip
        if room:
            ticks.append(value)
    if len(ticks) <= _MOST_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([shown(tick) for tick in ticks])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _legend(axes: Axes) -> None:
    _, labels = axes.get_legend_handles_labels()
    if 0 < len(labels) <= _MOST_NAMED:
        axes.legend(loc="best", frameon=False, fontsize=8)
    elif labels:
        axes.legend(frameon=False, fontsize=6, bbox_to_anchor=(1.0, 1.0), loc="upper left")
