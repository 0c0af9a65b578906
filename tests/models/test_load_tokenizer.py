"""Tokenizers that come as tokenizer.model only, as sentencepiece itself reads them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece

from sana_service.models.instruction import human_instruction
from sana_service.models.layout import Layout, read_layout
from sana_service.models.load import load_tokenizer
from tests.pairs import Pair, write_pair

TEXTS = [
    "a small red circle",
    "",
    "  two  blanks ",
    "été, 日本語 🦀",
    human_instruction(),
    human_instruction() + "a cat",
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def model() -> bytes:
    """A small BPE model with Gemma's options and special tokens."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(human_instruction().split("\n") * 3),
        model_writer=written,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        minloglevel=2,
    )
    return written.getvalue()


def layout_with(pair: Pair, folder: Path, model: bytes, config: dict[str, object] | None) -> Layout:
    base = shutil.copytree(pair.base, folder / "base")
    shutil.rmtree(base / "tokenizer")
    (base / "tokenizer").mkdir()
    (base / "tokenizer" / "tokenizer.model").write_bytes(model)
    if config is not None:
        (base / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    return read_layout("base", "folder", base, None)


@pytest.mark.parametrize("config", [None, {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}])
def test_tokenizer_model_alone_gives_sentencepieces_ids_after_bos(config, pair, model, tmp_path):
    tokenizer = load_tokenizer(layout_with(pair, tmp_path, model, config))
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in TEXTS:
        assert tokenizer(text).input_ids == [2, *reference.encode(text)], text
    padded = tokenizer(["a"], padding="max_length", max_length=4, truncation=True).input_ids
    assert padded == [[2, *reference.encode("a"), 0, 0]]


def test_a_broken_model_is_one_line(pair, tmp_path):
    from sana_service.models.checkpoint import ModelLoadError

    with pytest.raises(ModelLoadError, match="its tokenizer cannot be loaded") as told:
        load_tokenizer(layout_with(pair, tmp_path, b"no model", None))
    assert "\n" not in str(told.value)
