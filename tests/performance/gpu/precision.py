"""What `SANA_PRECISION=fp8` gains at the full size; `bundled.py` has what it costs."""

from __future__ import annotations

import statistics
import time
from typing import get_args

from sana_service.models.load import load_models
from sana_service.models.names import Precision
from tests.pairs import local_engine
from tests.performance.gpu.bench import SQUARE, Requests, Results, run_part


def measure(results: Results) -> None:
    """Exact, fp8, fp8, exact: one request alone, then saturation."""
    models = load_models("random", "", "", None, None, "cuda:0", progress=False)
    engines: dict[Precision, Requests] = {}
    for precision in get_args(Precision):
        engine = local_engine(models, safety=None, nsfw_threshold=0.5, max_queue=256, precision=precision)
        began = time.perf_counter()
        engine.start()
        results.note(f"{precision} prepare_seconds", time.perf_counter() - began)
        engines[precision] = Requests(engine)
    order: tuple[Precision, ...] = ("exact", "fp8", "fp8", "exact")
    for model, count in (("base", 16), ("sprint", 64)):
        seconds: dict[Precision, list[float]] = {"exact": [], "fp8": []}
        rates: dict[Precision, list[float]] = {"exact": [], "fp8": []}
        for precision in order:
            seconds[precision].append(engines[precision].alone(model, SQUARE, 5))
        for precision in order:
            engines[precision].draw_all(model, SQUARE, count // 4)
            rates[precision].append(count / engines[precision].draw_all(model, SQUARE, count)[0])
        exact, fp8 = (statistics.mean(seconds[precision]) for precision in ("exact", "fp8"))
        many, more = (statistics.mean(rates[precision]) for precision in ("exact", "fp8"))
        found = {"exact": exact, "fp8": fp8, "ratio": fp8 / exact}
        results.note(f"{model} alone", found)
        results.note(f"{model} images a second", {"exact": many, "fp8": more, "times": more / many})
    for requests in engines.values():
        requests.engine.stop()


if __name__ == "__main__":
    run_part(measure)
