"""The scaling curve as a picture: `python -m tests.performance.curve FILE.json OUT.png`.

The file holds curves by name, each images a second by number of devices, as the last lines of
`tests.performance.devices` and `tests.performance.served` have them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.performance.devices import GOAL_TIMES

COLOURS = ("#2563c9", "#e07020", "#208a6a", "#c83a78")


def draw(curves: dict[str, dict[str, float]], out: Path) -> None:
    """Times one device over the number of devices, a line a curve, and the goals."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=150)
    axes.plot([1, 8], [1, 8], color="#999999", linewidth=1, linestyle=":", label="as many times as devices")
    for (name, rates), colour in zip(curves.items(), COLOURS, strict=False):
        counts = sorted(map(int, rates))
        axes.plot(counts, [rates[str(count)] / rates["1"] for count in counts], "o-", color=colour, label=name)
    axes.plot(list(GOAL_TIMES), list(GOAL_TIMES.values()), "k_", markersize=18, label="goals")
    axes.set(xlabel="devices", ylabel="times one device", xticks=(1, 2, 4, 8), xlim=(0.5, 8.5), ylim=(0, 8.8))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
