"""The figure of a run: time against T, B and H, and bars with the times of others relative to ours."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from contest import WORKS, Outcome
from works import BASE, HEADINGS, OURS, Work

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

AXES = {"T": "steps T", "B": "sequences B", "H": "units H"}
COLOURS = {
    OURS: "#d1495b",
    "ember_mlx ops": "#edae49",
    "mlx.nn": "#00798c",
    "mlx loop": "#30a5b8",
    "torch": "#4059ad",
    "ncps": "#6b9ac4",
    "jax": "#3c6e47",
    "jax remat": "#87b38d",
}
OTHERS = "#888888"
Outcomes = dict[str, tuple[Work, dict[str, Outcome]]]
Ratio = Callable[[Outcome, Outcome], float | None]


def draw(outcomes: Outcomes, ratio: Ratio, path: Path, subtitle: str) -> None:
    """Write the figure as PNG."""
    titles = [title for title in ("CfC", "LSTM") if any(len(points(outcomes, title, letter)) > 1 for letter in AXES)]
    bars = {direction: _bars(outcomes, direction, ratio) for direction in HEADINGS}
    longest = max((len(found) + len({work for work, *_ in found}) for found in bars.values()), default=0)
    heights = [*[3.4] * len(titles), max(1.2, 0.21 * longest + 0.8)]
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(13, sum(heights) + 1.3), layout="constrained")
    figure.suptitle(f"ember_mlx and others on the same work, float32 unless named; medians, shaded: quartiles\n{subtitle}", fontsize=12)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for title, part in zip(titles, parts, strict=False):
        _lines(part, outcomes, title)
    for axis, (direction, found) in zip(parts[-1].subplots(1, 2, squeeze=False)[0], bars.items(), strict=True):
        _draw_bars(axis, found, HEADINGS[direction])
    figure.savefig(path, dpi=130)
    plt.close(figure)


def points(outcomes: Outcomes, layer: str, letter: str) -> dict[int, dict[str, Outcome]]:
    """The forward and backward results of a layer with all sizes but one at their base value."""
    found = {}
    for work, by_name in outcomes.values():
        sizes = {"T": work.T, "B": work.B, "H": work.units}
        others = all(size == BASE[name] for name, size in sizes.items() if name != letter)
        if others and work.title == f"{layer} {work.units}" and (work.direction, work.dtype, work.lengths) == ("both", "float32", False):
            found[sizes[letter]] = by_name
    return dict(sorted(found.items()))


def _lines(part: Any, outcomes: Outcomes, title: str) -> None:
    axes = part.subplots(1, 3, sharey=True)
    names: dict[str, Any] = {}
    for axis, (letter, label) in zip(axes, AXES.items(), strict=True):
        found = points(outcomes, title, letter)
        for name in dict.fromkeys(name for by_name in found.values() for name in by_name):
            there = [(size, by_name[name]) for size, by_name in found.items() if name in by_name and by_name[name].state == WORKS]
            if len(there) > 1:
                sizes, own = [size for size, _ in there], [[1e3 * t for t in outcome.times] for _, outcome in there]
                middle = [statistics.median(times) for times in own]
                quartiles = [statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3 for times in own]
                style = {"linewidth": 2.4, "zorder": 3} if name == OURS else {"linewidth": 1.4}
                (names[name],) = axis.plot(sizes, middle, "o-", color=COLOURS.get(name, OTHERS), markersize=4, **style)
                axis.fill_between(
                    sizes, [q[0] for q in quartiles], [q[2] for q in quartiles], color=COLOURS.get(name, OTHERS), alpha=0.15, lw=0
                )
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.xaxis.set_major_locator(FixedLocator(list(found)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.grid(alpha=0.3)
        axis.set_title(", ".join(f"{name}={size}" for name, size in BASE.items() if name != letter), fontsize=9, color="#555555")
    axes[0].set_ylabel(f"{title}, forward+backward: ms")
    part.legend(names.values(), names.keys(), loc="outside right center", frameon=False)


def _bars(outcomes: Outcomes, direction: str, ratio: Ratio) -> list[tuple[str, str, float | None, str]]:
    """(work, contender, time relative to ours or None, state) of the tables' works."""
    found = []
    for work, by_name in outcomes.values():
        if work.pictured or work.direction != direction:
            continue
        sized = work.sized.removesuffix(", float32").replace(f", B={BASE['B']} T={BASE['T']}", "")
        for name, outcome in by_name.items():
            if name != OURS:
                found.append((sized, name, ratio(outcome, by_name[OURS]) if outcome.state == WORKS else None, outcome.state))
    return found


def _draw_bars(axis: Any, found: list[tuple[str, str, float | None, str]], heading: str) -> None:
    """A group of bars for each work; peers that are faster than ours are to the left of 1."""
    place, ticks, before = 0.0, [], None
    if not found:
        axis.set_axis_off()
        return
    for sized, name, factor, state in found:
        if sized != before:
            place += 1
            ground = {"facecolor": "white", "linewidth": 0, "pad": 1}  # as wide as the text: it hides the line at 1, and no part of a bar
            axis.text(0.0, place, sized, transform=axis.get_yaxis_transform(), fontsize=9, fontweight="bold", va="center", bbox=ground)
            place, before = place + 1, sized
        if factor is not None:
            axis.barh(place, factor - 1, left=1, color=COLOURS.get(name, OTHERS), height=0.8)
        text = state if factor is None else f"{factor:.1f} x" if factor >= 1 else f"{factor:.2f} x"
        behind = factor is None or factor >= 1
        axis.annotate(
            text,
            (factor or 1, place),
            (4 if behind else -4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            ha="left" if behind else "right",
        )
        ticks.append((place, name))
        place += 1
    axis.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.axvline(1, color=COLOURS[OURS], linewidth=1.5)
    low, high = (limit([factor for *_, factor, _ in found if factor is not None], default=1.0) for limit in (min, max))
    axis.set(xscale="log", ylim=(place, 0), xlim=(min(0.5, low / 2), max(2.0, high * 2.5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
    axis.grid(alpha=0.3, axis="x")
    axis.set_title(f"{heading}, B={BASE['B']}, T={BASE['T']}", fontsize=10)
    axis.set_xlabel("time over that of ember_mlx (right of 1: slower than ember_mlx)")
