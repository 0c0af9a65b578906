import pytest
from hypothesis import given
from hypothesis import strategies as st

from sana_service.contract.billing import billable_units


@pytest.mark.parametrize(
    ("width", "height", "num_images", "units"),
    [
        (1024, 1024, 1, 1),
        (1025, 1024, 1, 2),  # one row over a mebipixel starts a second unit
        (512, 512, 4, 4),  # rounded up for each image, not for the sum
        (3840, 2160, 1, 8),  # 8,294,400 / 1,048,576 = 7.91
        (3840, 2160, 4, 32),
        (4096, 4096, 1, 16),
        (64, 64, 1, 1),
    ],
)
def test_hand_made_examples(width: int, height: int, num_images: int, units: int) -> None:
    assert billable_units(width, height, num_images) == units


@given(st.integers(64, 14142), st.integers(64, 14142), st.integers(1, 4))
def test_units_cover_the_pixels_and_no_unit_is_idle(width: int, height: int, num_images: int) -> None:
    each, remainder = divmod(billable_units(width, height, num_images), num_images)
    assert remainder == 0
    assert (each - 1) * 2**20 < width * height <= each * 2**20
