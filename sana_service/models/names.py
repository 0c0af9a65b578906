"""The two models by name."""

from typing import Literal

ModelName = Literal["base", "sprint"]
