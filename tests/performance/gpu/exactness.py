"""Each module's kernels against the stock module in bfloat16, both against the stock one in float32, full size.

Errors hide where gates are small, and the random weights' own are; so gates, shifts and scales get the size that
trained ones have. A picture's range is taken as three deviations of the exact one to either side. The bounds: relative
L2 error at most 1.25 times that of the stock forward in bfloat16, cosine at least 0.9995, a decoder within 45 dB of
the stock one; bit-equal are graphs and the same kernels uncaptured, a prompt's cached and fresh states, and pictures
drawn alone and while the stages of others run beside them. The safety model's graph gives the same each time, and its
uncaptured probability but for rounding. How far the decoder's pixels are from the stock one's, of 255, is a row of the
table: where the stock one is itself further than the bound from float32, an exact one would miss it. `bundled.py` has
the decoder with trained weights.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import torch

from sana_service.cuda_graph import URGENT
from sana_service.engine.fused.decoder import FusedDecoder
from sana_service.engine.fused.text import FusedTextEncoder
from sana_service.engine.fused.transformer import FusedForward
from sana_service.engine.gate import MemoryGate
from sana_service.engine.graphs import Capturer
from sana_service.engine.job import Job
from sana_service.engine.limits import Limits
from sana_service.engine.text import PromptEncoder
from sana_service.models.load import load_models
from sana_service.models.names import ModelName
from sana_service.safety import FalconsAi
from tests.pairs import local_engine
from tests.performance.gpu.bench import SQUARE, STEPS, Results, request, run_part
from tests.performance.gpu.hub_pair import write_safety

SIDES = ((32, 32), (24, 42))
"""Latents of the bins of 1024x1024 and of the default size."""

GATE_DEVIATION, SHIFT_DEVIATION = 0.5, 0.2
"""Of trained tables, about."""

MOST_ERROR, LEAST_COSINE, LEAST_DECIBEL = 1.25, 0.9995, 45.0

MOST_APART = 1e-5
"""Of a probability."""


def like_trained(transformer: Any, generator: torch.Generator) -> None:
    """Give tables of gates, shifts and scales their trained size."""
    for block in transformer.transformer_blocks:
        table = block.scale_shift_table.data
        table.normal_(0.0, SHIFT_DEVIATION, generator=generator)
        for gate in (2, 5):
            table[gate].normal_(0.0, GATE_DEVIATION, generator=generator)


def distances(result: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    """Relative L2 error and cosine."""
    one, other = result.double().flatten(), exact.double().flatten()
    cosine = torch.dot(one, other) / (one.norm() * other.norm())
    return {"relative_l2": float((one - other).norm() / other.norm()), "cosine": float(cosine)}


def judged(ours: torch.Tensor, stock: torch.Tensor, exact: torch.Tensor) -> dict[str, Any]:
    """Both distances from the exact result, and whether ours is within the bounds."""
    own, theirs = distances(ours, exact), distances(stock, exact)
    ratio = own["relative_l2"] / theirs["relative_l2"]
    good = ratio <= MOST_ERROR and own["cosine"] >= LEAST_COSINE
    return {"ours": own, "stock": theirs, "ratio": ratio, "good": good}


class Exactness:
    """Compares modules of one set of random models.

    Args:
        results: where figures go.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.models = load_models("random", "", "", None, None, "cuda:0", progress=False)
        self.device = self.models.device
        self.generator = torch.Generator(self.device).manual_seed(1)
        self.capturer = Capturer(self.device, 8 * 2**30, MemoryGate())

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.models.dtype)

    def text(self) -> list[torch.Tensor]:
        """Compare Gemma behind its instruction; states of two prompts."""
        module: Any = self.models.text_encoder
        exact = copy.deepcopy(module).float()
        prompts = ["a red circle", "two green stars to the left of a large yellow heart, drawn on dark blue paper " * 3]
        stock = PromptEncoder(self.models.tokenizer, module)
        precise = PromptEncoder(self.models.tokenizer, exact)
        expected = [precise.positive(prompt) for prompt in prompts]
        theirs = [stock.positive(prompt) for prompt in prompts]
        plain = PromptEncoder(self.models.tokenizer, module, fused=FusedTextEncoder(module))
        graphed = FusedTextEncoder(module, self.capturer, self.capturer.new_pool())
        encoder = PromptEncoder(self.models.tokenizer, module, fused=graphed)
        encoder.prepare()
        graphed.capture()
        ours = [encoder.positive(prompt) for prompt in prompts]
        self.results.note("text", judged(torch.cat(ours), torch.cat(theirs), torch.cat(expected)))
        uncaptured = [plain.positive(prompt) for prompt in prompts]
        cached = [encoder.positive(prompt) for prompt in prompts]
        again = PromptEncoder(self.models.tokenizer, module, fused=graphed)
        again._prefix = encoder._prefix
        fresh = [again.positive(prompt) for prompt in prompts]
        self.bits("text", "graph", ours, uncaptured)
        self.bits("text", "cached against fresh", cached, fresh)
        return ours

    def bits(self, what: str, which: str, one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
        """Note whether two calculations gave the same bits."""
        same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        self.results.note(f"{what}: {which}, equal bits", same)

    def transformer(self, name: Any, states: list[torch.Tensor]) -> None:
        """Compare a forward pass at several times, sizes and row counts; prompts of unlike length side by side."""
        module: Any = self.models.checkpoints[name].transformer
        like_trained(module, self.generator)
        exact = copy.deepcopy(module).float()
        plain = FusedForward(module)
        graphed = FusedForward(module, self.capturer, self.capturer.new_pool())
        graphed.reserve(2)
        found: list[dict[str, Any]] = []
        same = []
        for rows in (1, 2):
            for tall, wide in SIDES:
                graphed.capture(rows, tall, wide)
                for time in (999.0, 500.0, 20.0):
                    ours, stock, precise = self._forwards(module, exact, graphed, states[:rows], (tall, wide), time)
                    found.append(judged(ours(), stock(), precise()))
                    other = self._forwards(module, exact, plain, states[:rows], (tall, wide), time)[0]
                    same.append(torch.equal(ours(), other()))
        worst = max(found, key=lambda one: one["ratio"])
        self.results.note(f"{name} forward, the worst of {len(found)}", worst)
        self.results.note(f"{name} forward: graph, equal bits", all(same))

    def _forwards(
        self,
        module: Any,
        exact: Any,
        forward: FusedForward,
        states: list[torch.Tensor],
        side: tuple[int, int],
        time: float,
    ) -> tuple[Callable[[], torch.Tensor], ...]:
        """The kernels' forward, the stock one and the exact one, of the same inputs."""
        rows, config, seed = len(states), module.config, int(time)
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (rows, config.in_channels, *side)
        latents = torch.randn(shape, generator=generator, device=self.device, dtype=module.dtype)
        scaled = time / 1000 if config.guidance_embeds else time  # sprint counts its time in radians
        timesteps = torch.full((rows,), scaled, device=self.device)
        guidance = torch.full((rows,), 4.5, device=self.device) if config.guidance_embeds else None
        padded = torch.zeros(rows, 300, config.caption_channels, device=self.device, dtype=module.dtype)
        mask = torch.zeros(rows, 300, dtype=torch.int64, device=self.device)
        for row, state in enumerate(states):
            padded[row, : len(state)] = state
            mask[row, : len(state)] = 1

        def ours() -> torch.Tensor:
            contexts = forward.stack([forward.context(state) for state in states])
            return forward.forward(latents, timesteps, guidance, contexts)

        def library(one: Any) -> torch.Tensor:
            extra = {} if guidance is None else {"guidance": (guidance * config.guidance_embeds_scale).to(one.dtype)}
            result: torch.Tensor = one(
                latents.to(one.dtype), padded.to(one.dtype), timesteps, encoder_attention_mask=mask,
                return_dict=False, **extra,
            )[0]  # fmt: skip
            return result[:, : config.in_channels].float()

        return ours, lambda: library(module), lambda: library(exact)

    def decoder(self) -> None:
        """Compare the VAE's decoder."""
        module: Any = self.models.checkpoints["base"].vae
        exact = copy.deepcopy(module).float()
        inputs = [self.normal(1, 32, *side) for side in SIDES]
        precise = [exact.decode(one.float(), return_dict=False)[0] for one in inputs]
        stock = [module.decode(one, return_dict=False)[0].float() for one in inputs]
        plain = FusedDecoder(module)
        graphed = FusedDecoder(module, self.capturer, self.capturer.new_pool())
        for side in SIDES:
            graphed.capture(*side)
        ours = [graphed(one) for one in inputs]
        self.bits("decoder", "graph", ours, [plain(one) for one in inputs])
        for side, own, theirs, known in zip(SIDES, ours, stock, precise, strict=True):
            half_range = 3 * float(known.std())
            apart, stock_apart, own_apart = (
                (a - b).abs() / (2 * half_range) for a, b in ((own, theirs), (theirs, known), (own, known))
            )
            decibel = float(-10 * torch.log10(apart.square().mean()))
            steps = {
                "ours to stock": float(apart.max() * 255), "stock to float32": float(stock_apart.max() * 255),
                "ours to float32": float(own_apart.max() * 255),
            }  # fmt: skip
            found = {**judged(own, theirs, known), "decibel": decibel, "most_of_255": steps}
            self.results.note(
                f"decoder {32 * side[1]}x{32 * side[0]}", {**found, "good": found["good"] and decibel >= LEAST_DECIBEL}
            )

    def safety(self) -> None:
        """Ask the safety model's graph twice, from two threads, and the same model uncaptured."""
        with tempfile.TemporaryDirectory() as folder:
            write_safety(Path(folder))
            captured, plain = (FalconsAi(folder, self.device, capture=capture) for capture in (True, False))
        pictures = [
            torch.rand(1, 3, 32 * tall, 32 * wide, generator=self.generator, device=self.device)
            for tall, wide in SIDES * 4
        ]
        expected = [captured.probabilities(one) for one in pictures]
        again = [captured.probabilities(one) for one in pictures]
        with ThreadPoolExecutor(2) as threads:
            together = list(threads.map(self._on_a_stream(captured.probabilities), pictures))
        apart = [
            abs(graph - eager)
            for one, (graph,) in zip(pictures, expected, strict=True)
            for eager in plain.probabilities(one)
        ]
        self.results.note("safety: again, equal bits", captured._graph is not None and again == expected)
        # By rounding; every picture goes through the graph, so there is one answer to each.
        self.results.note("safety: graph against uncaptured", {"most": max(apart), "good": max(apart) <= MOST_APART})
        self.results.note("safety: two threads, equal bits", together == expected)

    def _on_a_stream(self, classify: Callable[[torch.Tensor], list[float]]) -> Callable[[torch.Tensor], list[float]]:
        def run(picture: torch.Tensor) -> list[float]:
            with torch.cuda.stream(torch.cuda.Stream(self.device, priority=URGENT)):
                return classify(picture)

        return run

    def pipelining(self) -> None:
        """Draw some pictures one after another, then all at once, mixed; a batch is one row, so bits are comparable."""
        limits = Limits(
            batch_cells=dict.fromkeys(get_args(ModelName), 1024), seats=dict.fromkeys(get_args(ModelName), 6)
        )
        engine = local_engine(self.models, safety=None, nsfw_threshold=0.5, max_queue=64, limits=limits)
        engine.start()

        def jobs() -> list[Job]:
            return [request(model, SQUARE, seed) for seed in range(8) for model in STEPS]

        alone = [torch.from_numpy(engine.submit(job).result().pixels) for job in jobs()]
        futures = [engine.submit(job) for job in jobs()]
        together = [torch.from_numpy(future.result().pixels) for future in futures]
        engine.stop()
        self.bits("pictures", "alone and together", alone, together)


@torch.inference_mode()
def measure(results: Results) -> None:
    """All of it."""
    exactness = Exactness(results)
    states = exactness.text()
    for name in exactness.models.checkpoints:
        exactness.transformer(name, states)
    exactness.decoder()
    exactness.safety()
    exactness.capturer.stop()
    exactness.pipelining()


if __name__ == "__main__":
    run_part(measure)
