"""Loss curves of the runs' cards as small PNGs: `python -m sana_service.models.bundled.training.plots FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def plot(card: Path) -> None:
    """Write `<stage>-loss.png` beside a card."""
    from matplotlib.figure import Figure

    run = json.loads(card.read_text(encoding="utf-8"))
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([seconds for _, seconds, _ in run["curve"]], [loss for *_, loss in run["curve"]])
    axes.set(xlabel="seconds of training", ylabel="loss", yscale="log", title=f"{run['stage']}: {run['steps']} steps")
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.savefig(card.with_name(f"{run['stage']}-loss.png"), dpi=80)


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        if "curve" in json.loads(path.read_text(encoding="utf-8")):
            plot(path)
