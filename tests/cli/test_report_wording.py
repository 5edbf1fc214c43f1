"""Rules of how values are worded on the report."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.report import wording
from cli.report.wording import file_name, format_bytes, format_seconds, link_to, visible


def test_examples_in_the_docstrings_hold() -> None:
    """Every worked example of the module is true."""
    result = doctest.testmod(wording)

    assert result.attempted >= 7
    assert result.failed == 0


@given(st.text(st.characters(exclude_categories=())))
def test_visible_text_can_always_be_written(text: str) -> None:
    """Any text, lone surrogates included, becomes UTF-8 on one line."""
    assert visible(text).encode("utf-8").decode("utf-8") == visible(text)
    assert len(visible(text).splitlines()) <= 1


def test_ordinary_names_stay_as_they_are() -> None:
    """Letters of any script, emoji and punctuation are not touched."""
    for name in ("Größe (1).jpg", "写真.png", "תמונה.jpg", "👩‍👩‍👧.webp", "a'b\"c<d>.gif"):
        assert visible(name) == name


@pytest.mark.parametrize(
    ("uri", "link"),
    [
        ("/photos/100%.jpg", "file:///photos/100%25.jpg"),
        ("/photos/\udcff.jpg", "file:///photos/%FF.jpg"),
        ("file:/photos/a%20b.jpg", "file:///photos/a%20b.jpg"),
        ("file:///photos/a.jpg", "file:///photos/a.jpg"),
        ('https://a.example/b.jpg?c="d"', "https://a.example/b.jpg?c=%22d%22"),
    ],
)
def test_files_and_web_pages_are_linked(uri: str, link: str) -> None:
    """Paths, file: and http(s): addresses become links in which every odd byte is escaped."""
    assert link_to(uri) == link


@pytest.mark.parametrize(
    "uri", ["javascript:alert(1)", "data:text/html,<script>", "s3://bucket/a.jpg", "a.jpg", "", "/\ud800"]
)
def test_nothing_else_is_linked(uri: str) -> None:
    """Scripts, data, stores that a browser cannot open and names that are no path have no link."""
    assert link_to(uri) is None


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_949, "9.9 kB"), (9_951, "10 kB"), (999_499, "999 kB"),
     (999_500, "1.0 MB"), (10**15, "1.0 PB"), (10**19, "10,000 PB")],
)  # fmt: skip
def test_sizes_turn_into_the_next_unit_where_they_would_round_to_it(num_bytes: int, text: str) -> None:
    """A size never reads 1000 of a unit that has a larger one."""
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (3599.7, "1 h 0 min")]
)
def test_durations_carry_into_the_next_unit(seconds: float, text: str) -> None:
    """A duration never reads 60 of a unit."""
    assert format_seconds(seconds) == text


def test_file_name_of_a_folder_is_its_last_part() -> None:
    """A closing slash is no name."""
    assert file_name("/photos/album/") == "album"
    assert file_name("") == ""
