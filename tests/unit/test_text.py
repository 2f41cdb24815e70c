"""Text from outside is made fit for people."""

from pathlib import Path

import pytest
from pydantic import AwareDatetime, BaseModel, ValidationError

from controller.text import describe_faults, excerpt, file_trouble, is_blank, one_line, printable

HOSTILE = "a\x1b[31mb\r\nc\u202ed"


def test_nothing_printable_is_changed_and_all_else_replaced() -> None:
    """Each character that could forge a log or a terminal becomes the placeholder."""
    assert printable("Größe: 10 %") == "Größe: 10 %"
    assert printable(HOSTILE) == "a [31mb  c d"
    assert printable(HOSTILE, "?") == "a?[31mb??c?d"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        (" \t", True),
        ("\u200b\ufeff\ufe0f\u3164", True),
        ("\u200ba", False),
        ("é", False),
    ],
)
def test_what_cannot_be_seen_is_blank(text: str, expected: bool) -> None:
    """Also characters that are no white space, and letters without a shape."""
    assert is_blank(text) is expected


def test_an_excerpt_is_cut_before_it_is_trimmed() -> None:
    """No more than the given number of characters is read of the text."""
    assert excerpt("  \n ab cd", 6) == "ab"


def test_one_line_has_single_spaces() -> None:
    """Line ends and runs of white space become one space."""
    assert one_line("a\n\n b\tc\x00") == "a b c?"


def test_faults_are_described_with_place_and_number() -> None:
    """The first three faults are described, the others counted."""

    class Form(BaseModel):
        a: int
        b: int
        c: int
        d: int

    with pytest.raises(ValidationError) as raised:
        Form.model_validate({"a": "x", "b": 1})
    assert describe_faults(raised.value).startswith("a: write a whole number")
    assert describe_faults(raised.value).endswith("c: is missing; d: is missing")
    with pytest.raises(ValidationError) as raised:
        Form.model_validate({})
    assert describe_faults(raised.value).endswith("c: is missing (and 1 more)")


def test_a_file_in_trouble_is_named_once(tmp_path: Path) -> None:
    """The system's text has a number and the path, which stands before it already."""
    with pytest.raises(OSError) as raised:
        (tmp_path / "none.yaml").read_text()
    assert file_trouble(raised.value) == "No such file or directory"
    (tmp_path / "binary").write_bytes(b"ab\xff")
    with pytest.raises(UnicodeDecodeError) as unread:
        (tmp_path / "binary").read_text(encoding="utf-8")
    assert file_trouble(unread.value) == "it is no text in UTF-8 (byte 3)"


def test_a_time_without_an_offset_is_told_what_to_write() -> None:
    """It said "Input should have timezone info"."""

    class Form(BaseModel):
        start: AwareDatetime

    for typed in ("2026-12-01 20:00", "tomorrow"):
        with pytest.raises(ValidationError) as raised:
            Form.model_validate({"start": typed})
        assert describe_faults(raised.value) == (
            "start: write a time with its offset from UTC, as in 2026-11-21T03:00:00Z"
        )
