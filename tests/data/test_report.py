from hypothesis import given
from hypothesis import strategies as st

from rcnn.data.report import EXAMPLES, Report


def test_counts_by_kind_and_shows_the_first_examples() -> None:
    report = Report()
    for number in range(5):
        report.add("box too large", f"a.xml: object {number}")
    report.add("no name", "b.xml")
    assert report.counts == {"box too large": 5, "no name": 1}
    assert report.format() == (
        "box too large (5): a.xml: object 0 | a.xml: object 1 | a.xml: object 2 | and 2 more\nno name (1): b.xml"
    )


def test_nothing_wrong_is_empty() -> None:
    report = Report()
    report.add_many("box too large", 0, [])
    assert report.total == 0 and report.format() == ""


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1000))))
def test_counts_all_and_keeps_few(problems: list[tuple[str, int]]) -> None:
    report = Report()
    for kind, count in problems:
        report.add_many(kind, count, (f"{kind}{i}" for i in range(count)))
    assert report.total == sum(count for _, count in problems)
    assert all(len(shown) == min(EXAMPLES, report.counts[kind]) for kind, shown in report.examples.items())
