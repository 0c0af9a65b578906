"""The text that Sana's checkpoints were trained to read before every prompt."""

from __future__ import annotations

import functools
import inspect

from diffusers import SanaPipeline


@functools.cache
def human_instruction() -> str:
    """The "complex human instruction" (Sana, arXiv 2410.10629, section 3.1), ending in "User Prompt: ".

    It is the default of an argument of the stock pipelines, the same in both.
    """
    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines)
