import math

import pytest

from rcnn.data.fields import parse_flag, parse_number


def test_numbers() -> None:
    assert parse_number(" 3.5 ", "xmin", where="a.xml") == 3.5
    assert parse_number("-4", "xmin", where="a.xml") == -4
    assert math.isnan(parse_number("NaN", "xmin", where="a.xml"))


@pytest.mark.parametrize(
    ("text", "problem"), [(None, "has no xmin"), (" ", "has no xmin"), ("1O", "xmin is '1O', not")]
)
def test_what_is_no_number_is_named(text: str | None, problem: str) -> None:
    with pytest.raises(ValueError, match=f"a.xml: object 2: {problem}"):
        parse_number(text, "xmin", where="a.xml: object 2")


def test_flags() -> None:
    assert [parse_flag(text, "difficult", where="a.xml") for text in ("1", "0", "", None)] == [
        True,
        False,
        False,
        False,
    ]
    with pytest.raises(ValueError, match=r"a\.xml: difficult is 'yes'; write 0 or 1"):
        parse_flag("yes", "difficult", where="a.xml")
