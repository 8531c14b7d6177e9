import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.cli import main
from rcnn.commands.options import PrintableFormatter
from rcnn.terminal import LONGEST, printable


def test_definition_letters_pass_and_escape_sequences_are_written_out() -> None:
    assert printable("Fußgänger, 人: 'a'\n  b\tc") == "Fußgänger, 人: 'a'\n  b\tc"
    assert printable("\x1b]0;title\x07\x9b2J\r\u202e\ud800") == r"\x1b]0;title\x07\x9b2J\r\u202e\ud800"
    assert len(printable("x" * 10**6)) < LONGEST + 50


@given(st.text(st.characters(codec=None)))
def test_property_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    assert all(character.isprintable() or character in "\n\t" for character in printable(text))


def test_messages_and_the_log_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["\x1b[2Jtrain"]) == 2
    assert "\x1b" not in capsys.readouterr().err
    record = logging.LogRecord("rcnn", logging.WARNING, "", 0, "%s", ("a \x1b[2J class",), None)
    assert PrintableFormatter("%(message)s").format(record) == r"a \x1b[2J class"
