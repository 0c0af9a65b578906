"""What a request costs, in billable units.

A unit is one started mebipixel (2**20 pixels) of one image, counted at the size that the client
asked for, as the reference does. Errors cost nothing.
"""

from __future__ import annotations

BILLING_HEADER = "x-fal-billable-units"
PIXELS_PER_UNIT = 2**20


def billable_units(width: int, height: int, num_images: int) -> int:
    """Units of `num_images` pictures of `width` by `height` pixels: ceil(w * h / 2**20) * n."""
    return -(-width * height // PIXELS_PER_UNIT) * num_images
