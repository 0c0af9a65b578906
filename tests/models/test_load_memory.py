"""Resident memory: a pair whose text encoder is by far its largest part takes that part once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.pairs import Pair, write_pair

_PROBE = """
import json, re, sys
from pathlib import Path
import psutil
from sana_service.models.load import load_models

def resident():
    return psutil.Process().memory_info().rss

small, large = sys.argv[1:3], sys.argv[3:5]
first = load_models("hub", *small, None, None, "cpu")  # imports, allocator, thread pools
before = resident()
models = load_models("hub", *large, None, None, "cpu")
after = resident()
# Not ru_maxrss, which a process has from the one that started it.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
size = sum(parameter.nbytes for parameter in models.text_encoder.parameters())
print(json.dumps({"grown": after - before, "peak": peak - before, "size": size}))
"""


def enlarge(pair: Pair) -> None:
    """Give both pipelines the same text encoder of 256 MiB in float32."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=65536,
        hidden_size=1024,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    encoder = Gemma2Model(config)
    # Saved in another precision than loaded, since equal ones are mapped and not resident.
    torch.nn.Module.to(encoder, torch.bfloat16)
    for folder in (pair.base, pair.sprint):
        encoder.save_pretrained(folder / "text_encoder")


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    small = write_pair(tmp_path_factory.mktemp("small"))
    large = write_pair(tmp_path_factory.mktemp("large"))
    enlarge(large)
    folders = [str(folder) for folder in (small.base, small.sprint, large.base, large.sprint)]
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE, *folders],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    measured: dict[str, int] = json.loads(probe.stdout.splitlines()[-1])
    return measured


def test_two_pipelines_hold_one_text_encoder(memory):
    assert memory["size"] > 250 * 2**20
    assert 0.9 * memory["size"] < memory["grown"] < 1.3 * memory["size"]


def test_loading_makes_no_second_copy_on_the_way(memory):
    """At its peak it holds the file, half as large, and what has been made of it."""
    assert memory["peak"] < 1.9 * memory["size"]
