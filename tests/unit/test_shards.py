"""The rule that divides tenants among replicas, and the arithmetic of topic filters that it rests on."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.shards import Entry, Filters, Layout, covers, narrow, overlap, parse_entries

DEFAULT = ("traksense/+/+/+/telem", "traksense/+/+/+/ack")
NAMES = st.lists(st.text("abcdef-0123456789", min_size=1, max_size=12), min_size=1, max_size=40, unique=True)
LEVELS = st.sampled_from(["a", "b", "+"])
FILTERS = st.builds(
    lambda levels, rest: "/".join([*levels, *rest]),
    st.lists(LEVELS, min_size=1, max_size=3),
    st.sampled_from([[], ["#"]]),
)
TOPICS = ["/".join(levels) for length in range(1, 5) for levels in product("abc", repeat=length)]


def layout(names: list[str], count: int, topics: tuple[str, ...] = DEFAULT) -> Layout:
    return Layout(topics, tuple(Entry(name) for name in names), count)


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT 5.0 §4.7, spelt out."""
    levels, names = topic_filter.split("/"), topic.split("/")
    if levels[-1] == "#":
        levels.pop()
        if len(names) < len(levels):
            return False
        names = names[: len(levels)]
    return len(levels) == len(names) and all(level in ("+", name) for level, name in zip(levels, names, strict=True))


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_shard_of_is_the_same_for_ever() -> None:
    """Sessions depend on it: these must never change, in no release and on no machine."""
    assert [3, 1, 1, 3, 2, 2] == [
        layout([], 3).shard_of(Entry(name)) for name in ("acme", "beta", "gamma", "delta", "epsilon", "zeta")
    ]


@given(names=NAMES, count=st.integers(1, 9))
def test_every_entry_is_in_one_shard(names: list[str], count: int) -> None:
    """Nobody is left out, and nobody is read twice."""
    divided = layout(names, count)

    every = Counter(topic for shard in range(1, count + 1) for topic in divided.filters(shard))

    assert Counter(topic for name in names for topic in divided.filters_of(Entry(name))) == every


@given(names=NAMES, count=st.integers(1, 9))
def test_a_new_shard_takes_and_nothing_else_moves(names: list[str], count: int) -> None:
    """From n to n + 1, whoever moves goes to the new one; so from n + 1 to n, only its own move."""
    before, after = layout(names, count), layout(names, count + 1)

    moved = {
        after.shard_of(Entry(name)) for name in names if after.shard_of(Entry(name)) != before.shard_of(Entry(name))
    }

    assert moved <= {count + 1}


def test_shards_are_of_like_size() -> None:
    """Of 10,000 tenants, each of five shards has a fifth, within a tenth of it."""
    divided = layout([], 5)

    sizes = Counter(divided.shard_of(Entry(f"tenant-{number}")) for number in range(10_000))

    assert {1, 2, 3, 4, 5} == set(sizes)
    assert all(1_800 <= size <= 2_200 for size in sizes.values()), sizes


@given(names=NAMES, count=st.integers(2, 9), pinned=st.integers(1, 9))
def test_a_pin_moves_nobody_else(names: list[str], count: int, pinned: int) -> None:
    """What is written down wins over the rule, for that entry."""
    pinned = min(pinned, count)
    divided = layout(names, count)

    assert pinned == divided.shard_of(Entry(names[0], pinned=pinned))
    assert [divided.shard_of(Entry(name)) for name in names[1:]] == [
        Layout(DEFAULT, (Entry(names[0], pinned=pinned),), count).shard_of(Entry(name)) for name in names[1:]
    ]


# --- filters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "entry", "expected"),
    [
        ("traksense/+/+/+/telem", Entry("acme"), "traksense/acme/+/+/telem"),
        ("traksense/+/+/+/telem", Entry("acme", "north"), "traksense/acme/north/+/telem"),
        ("traksense/#", Entry("acme"), "traksense/acme/#"),
        ("traksense/#", Entry("acme", "north"), "traksense/acme/north/#"),
        ("traksense/+/#", Entry("acme", "north"), "traksense/acme/north/#"),
        ("traksense/+/north/+/telem", Entry("acme"), "traksense/acme/north/+/telem"),
    ],
)
def test_narrow_fills_in_tenant_and_site(topic: str, entry: Entry, expected: str) -> None:
    """The levels that are open get the names."""
    assert expected == narrow(topic, entry)


@given(one=FILTERS, other=FILTERS)
def test_overlap_finds_a_common_topic(one: str, other: str) -> None:
    """Two filters overlap if and only if some topic matches both."""
    common = [topic for topic in TOPICS if matches(one, topic) and matches(other, topic)]

    assert bool(common) is overlap(one, other)


@given(one=FILTERS, other=FILTERS)
def test_covers_is_never_too_generous(one: str, other: str) -> None:
    """What a filter is said to cover, it matches all of: a topic given up would be read by nobody otherwise."""
    if covers(one, other):
        assert [] == [topic for topic in TOPICS if matches(other, topic) and not matches(one, topic)]


def test_shared_filters_are_compared_by_what_they_match() -> None:
    """`$share/group/` is no part of the filter."""
    assert covers("$share/g/traksense/+/+/+/telem", "traksense/acme/+/+/telem")
    assert overlap("$share/g/traksense/+/+/+/telem", "traksense/acme/#")
    assert not overlap("$share/g/a/b", "a/c")


@given(names=NAMES, topic=st.sampled_from(["traksense/+/+/+/telem", "traksense/a/+/+/telem", "traksense/#", "other/#"]))
def test_overlapping_misses_none(names: list[str], topic: str) -> None:
    """The index by tenant finds what a look at all filters finds."""
    divided = layout(names, 3)
    every = [other for shard in (1, 2, 3) for other in divided.filters(shard)]

    assert sorted(other for other in every if overlap(topic, other)) == sorted(divided.overlapping(topic))
    assert divided.overlapping(topic) == divided.overlapping(f"$share/group/{topic}")


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("traksense/+/+/+/telem", ["traksense/a/+/+/telem", "traksense/b/x/+/telem", "traksense/b/y/+/telem"]),
        ("traksense/#", ["traksense/a/#", "traksense/b/x/#", "traksense/b/y/#"]),
        ("#", ["+/a/#", "+/b/x/#", "+/b/y/#"]),
        ("traksense/b/#", ["traksense/b/x/#", "traksense/b/y/#"]),
        ("$share/g/traksense/b/y/+/ack", ["traksense/b/y/+/ack"]),
        ("traksense/b/z/+/ack", []),
        ("traksense/c/#", []),
    ],
)
def test_parts_are_what_a_filter_brings_of_each_entry(topic: str, expected: list[str]) -> None:
    """Of those that are listed: nobody can tell what else it brings."""
    entries = (Entry("a"), Entry("b", "x"), Entry("b", "y"))

    assert expected == Layout(DEFAULT, entries, 2).parts(topic)


@given(claims=st.lists(FILTERS, max_size=5), topic=FILTERS)
def test_filters_cover_what_any_of_them_covers(claims: list[str], topic: str) -> None:
    """The index by tenant changes nothing."""
    assert any(covers(claim, topic) for claim in claims) is Filters(claims).cover(topic)


# --- the list ---------------------------------------------------------------------------------------------------------


def test_entries_are_read_from_commas_lines_and_comments() -> None:
    """An environment variable and a file look natural both."""
    assert (Entry("a"), Entry("b", pinned=2), Entry("c", "x"), Entry("c", "y", 3)) == parse_entries(
        "a, b = 2\n# everything else\nc/x  # north\n\nc/y=3,\n"
    )


@pytest.mark.parametrize("text", ["a/b/c", "/x", "a/", "+", "a/+", "a=x", "a=", "=2"])
def test_entries_that_are_none_are_named(text: str) -> None:
    """The text is in the message."""
    with pytest.raises(ValueError, match="must") as refused:
        parse_entries(f"fine,{text}")

    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("entries", "count", "topics", "fault"),
    [
        ("a,a", 2, DEFAULT, "a is listed twice"),
        ("a,a/x", 2, DEFAULT, "a is listed as a whole and by site (a/x)"),
        ("a=3", 2, DEFAULT, "a is pinned to shard 3 of 2"),
        ("a=0", 2, DEFAULT, "a is pinned to shard 0 of 2"),
        ("a", 0, DEFAULT, "must be 1-1000"),
        ("a", 2, ("$share/g/traksense/#",), "would divide it again"),
        ("a", 2, ("traksense/acme/#",), "the tenant has to be left open"),
        ("a", 2, ("#",), "the tenant has to be left open"),
        ("a/x", 2, ("traksense/+/north/+/telem",), "the site has to be left open"),
    ],
)
def test_faults_are_named(entries: str, count: int, topics: tuple[str, ...], fault: str) -> None:
    """One line says what is wrong."""
    (found,) = Layout(topics, parse_entries(entries), count).faults()

    assert fault in found[1]
