"""Several GPUs of one machine behind one queue: images a second with 1, 2, 4 and so on of them.

Full size, random weights. Square pictures from submit to pixels on the host; at the default size as JPEG, encoded as
the service does.
"""

from __future__ import annotations

import asyncio
import statistics
import time

import torch

from sana_service.engine.job import Job
from sana_service.images import Encoder
from sana_service.models.load import load_models
from tests.pairs import local_engine
from tests.performance.gpu.bench import DEFAULT, SQUARE, Requests, Results, run_part

REQUESTS = (("base", SQUARE, 20), ("sprint", SQUARE, 96), ("sprint", DEFAULT, 96))
"""Pictures for each GPU: some seconds."""


def measure(results: Results) -> None:
    """Each number of devices twice, upwards and downwards again, so that drift hurts all alike."""
    present = torch.cuda.device_count()
    counts = [2**power for power in range(present.bit_length())]
    sets = [load_models("random", "", "", None, None, f"cuda:{i}", progress=False) for i in range(counts[-1])]
    engines = {}
    for count in counts:
        engine = local_engine(sets[:count], safety=None, nsfw_threshold=0.5, max_queue=1024)
        began = time.perf_counter()
        engine.start()
        results.note(f"{count} devices, prepare_seconds", time.perf_counter() - began)
        engines[count] = Requests(engine)
    encoder = Encoder()
    for model, size, images in REQUESTS:
        rates: dict[int, list[float]] = {count: [] for count in counts}
        for count in counts + counts[::-1]:
            _pictures(engines[count], encoder, model, size, count * images // 4)
            rates[count].append(_pictures(engines[count], encoder, model, size, count * images))
        means = {count: statistics.mean(each) for count, each in rates.items()}
        found = {str(count): {"rate": rate, "times": rate / means[1]} for count, rate in means.items()}
        results.note(f"{model} {size[0]}x{size[1]}, images a second by devices", found)
    for requests in engines.values():
        requests.engine.stop()
    encoder.close()


def _pictures(requests: Requests, encoder: Encoder, model: str, size: tuple[int, int], count: int) -> float:
    """Pictures a second of so many requests at once."""
    jobs = requests.jobs(model, size, count)

    async def picture(job: Job) -> None:
        artifact = await asyncio.wrap_future(requests.engine.submit(job))
        if size == DEFAULT:
            await encoder.encode_all(artifact.pixels, "jpeg", [None])

    async def pictures() -> float:
        began = time.perf_counter()
        await asyncio.gather(*map(picture, jobs))
        return count / (time.perf_counter() - began)

    return asyncio.run(pictures())


if __name__ == "__main__":
    run_part(measure)
