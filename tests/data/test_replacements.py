import itertools

import pytest

from dinov2_hf.data import UndecodableImage
from dinov2_hf.data.replacements import first_decodable


def decode(value):
    if value % 5:
        raise UndecodableImage(f"{value} is broken")
    return value // 5


def test_the_first_that_can_be_decoded_and_those_before_it():
    row, decoded, skipped = first_decodable(((f"row {value}", value) for value in itertools.count(13)), decode)
    assert (row, decoded) == ("row 15", 3)
    assert skipped == [("row 13", "13 is broken"), ("row 14", "14 is broken")]


def test_twenty_in_a_row_are_too_many():
    with pytest.raises(ValueError, match="20 images in a row could not be decoded, the last of them row 20"):
        first_decodable(((f"row {number}", 1) for number in itertools.count(1)), decode)
