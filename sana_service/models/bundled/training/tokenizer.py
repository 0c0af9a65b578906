"""Train the small Gemma-compatible tokenizer: `python -m sana_service.models.bundled.training.tokenizer`.

BPE with byte fallback over the scene language. The eight lines of the pipelines' long instruction are one token each,
so that the instruction costs eight positions instead of some two hundred; a prompt's own tokens are the same with and
without it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from sana_service.models.bundled import base_folder
from sana_service.models.bundled.training.captions import vocabulary_corpus
from sana_service.models.bundled.training.language import Scene, sample_scene

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
VOCABULARY = 1400
CORPUS_SCENES = 20_000


def instruction_lines() -> list[str]:
    """The pipelines' complex human instruction, as the stock pipeline joins it to the prompt."""
    import inspect

    from diffusers import SanaPipeline

    lines: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return [*(f"{line}\n" for line in lines[:-1]), lines[-1]]


def train(folder: Path, *, scenes: int = CORPUS_SCENES, seed: int = 0) -> None:
    """Train on captions of random scenes and save in the layout of `GemmaTokenizer`.

    Args:
        folder: the `tokenizer` folder to write.
        scenes: how many captions to learn from.
        seed: of the scenes and their wording.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import GemmaTokenizer

    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("▁[^▁]*|[^▁]+"), "isolated"), pre_tokenizers.Split(Regex("[.,!?]"), "isolated")]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    learner.train_from_iterator(
        vocabulary_corpus(_scenes(scenes, seed)),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 256,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=[chr(code) for code in range(33, 127)],
            show_progress=False,
        ),
    )
    model = json.loads(learner.to_str())["model"]
    learned = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    learned = [token for token in learned if token not in SPECIAL_TOKENS]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *bytes_, *learned])}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges, model_max_length=512)
    tokenizer.add_tokens([AddedToken(line, normalized=False, special=False) for line in instruction_lines()])
    # Built from a vocabulary the class adds no <bos>, and an empty prompt would have no token at all.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)]
    )
    with TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((Path(scratch) / name).read_bytes())


def _scenes(count: int, seed: int) -> Iterator[tuple[Scene, random.Random]]:
    rng = random.Random(seed)
    for _ in range(count):
        yield sample_scene(rng), rng


if __name__ == "__main__":
    train(base_folder() / "tokenizer")
