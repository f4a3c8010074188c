"""Tables and lines fit a terminal, whatever characters the names have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.cells import Column, cut, table, width, wrapped

NAMES = st.text(st.characters(categories=["L", "Mn", "N", "P", "S"]), max_size=150)


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("abc", 3),
        ("圧力計", 6),
        ("e\u0301", 1),
        ("ﾎﾟﾝ", 3),
        ("한", 2),
        ("\u1112\u1161\u11ab", 2),
        ("ＡＢ", 4),
        ("°C", 2),
        ("", 0),
    ],
)
def test_width_counts_cells(text: str, cells: int) -> None:
    """Two for what is wide, none for what is combined with the character before it."""
    assert cells == width(text)


@pytest.mark.parametrize(
    ("text", "room", "ends", "expected"),
    [
        ("abcdef", 6, False, "abcdef"),
        ("abcdefg", 6, False, "abcde…"),
        ("圧力計圧力計", 6, False, "圧力…"),
        ("圧力計圧力計", 7, False, "圧力計…"),
        ("e\u0301" * 7, 6, False, "e\u0301" * 5 + "…"),
        ("traksense/acme/d7/telem", 12, True, "trak…7/telem"),
        ("abcdef", 0, False, "…"),
    ],
)
def test_cut_leaves_a_mark(text: str, room: int, ends: bool, expected: str) -> None:
    """What is left out is marked; no character is halved, and no mark left without its letter."""
    assert expected == cut(text, room, ends=ends)


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1), st.integers(40, 200))
def test_table_never_wraps_and_lines_up(rows: list[tuple[str, str, str]], room: int) -> None:
    """However long the names are, each line fits, and each column begins at the same cell in all of them."""
    columns = (Column("A", least=10), Column("B", least=10, ends=True), Column("C", least=10))
    heading, *lines = table(columns, [(a, f"|{b}", f"|{c}|") for a, b, c in rows], room)

    assert all(width(line) <= room for line in lines)
    begins = width(heading[: heading.index("B")])
    assert all("|" in _from(line, begins)[:1] for line in lines)


def _from(line: str, cells: int) -> str:
    return next(
        line[index:] for index in range(len(line) + 1) if width(line[:index]) >= cells and line[index:][:1] == "|"
    )


def test_table_leaves_out_what_it_may_before_it_cuts_more() -> None:
    """In the order given; what is not dispensable stays."""
    columns = (Column("ID"), Column("NAME", least=10), Column("WHEN"), Column("WHO"))
    row = ("7", "n" * 30, "2026-11-20", "somebody")

    def headings(room: int) -> list[str]:
        return next(table(columns, [row], room, dispensable=("WHO", "WHEN"))).split()

    assert ["ID", "NAME", "WHEN", "WHO"] == headings(40)
    assert ["ID", "NAME", "WHEN"] == headings(30)
    assert ["ID", "NAME"] == headings(20)


@given(st.integers(1, 40))
def test_table_is_cut_off_where_not_even_the_least_fits(room: int) -> None:
    """On the narrowest of terminals: a line is one line, and what is cut off is marked."""
    columns = (Column("ID"), Column("LAST_TS"), Column("REASON"), Column("TOPIC", least=40, ends=True))
    row = ("7", "2026-11-29T03:01:45Z", "timestamp_out_of_window", "traksense/acme/factory/press-1/telem")
    heading, line = table(columns, [row], room)

    assert width(heading) <= room
    assert width(line) == room
    assert line.endswith("…")


def test_table_in_a_pipe_is_whole_and_not_padded_by_one_long_name() -> None:
    """For grep and awk: nothing is cut; numbers stand to the right."""
    lines = table(
        (Column("N", right=True), Column("NAME", least=9), Column("X")),
        [("12345", "n" * 99, "x"), ("1", "m", "y")],
        None,
    )

    assert [f"N      NAME{' ' * 38}X", f"12345  {'n' * 99}  x", f"    1  m{' ' * 41}y"] == list(lines)


@given(st.lists(st.text("abc圧", min_size=1, max_size=12), min_size=1).map(" ".join), st.integers(20, 60))
def test_wrapped_keeps_every_word(line: str, room: int) -> None:
    """Broken at spaces only, never longer than the terminal is wide, all but the first line indented."""
    first, *rest = wrapped(line, room, 4)

    assert " ".join([first, *(part.removeprefix("    ") for part in rest)]).split() == line.split()
    assert all(width(part) <= room for part in (first, *rest) if len(part.split()) > 1)
    assert all(part.startswith("    ") for part in rest)
