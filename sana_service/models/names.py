"""The two models, and how exactly they are computed, by name."""

from typing import Literal

ModelName = Literal["base", "sprint"]

Precision = Literal["exact", "fp8"]
"""`exact`: in the checkpoint's own precision. `fp8`: the transformers' large matrix products with 8-bit
floating point numbers.
"""
