"""One spelling of names and units, and how they are shown."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.ingest.decode import Router, _describe_topic, read_topic
from traksense.names import canonical_name, canonical_point, canonical_unit, printable, tenant_fault

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("spellings", "expected"),
    [
        (["\u00b5g/m\u00b3", "\u03bcg/m\u00b3", " \u00b5g/m\u00b3\u00a0"], "\u00b5g/m\u00b3"),
        (["\u2126", "\u03a9"], "\u03a9"),
        (["k\u2126", "k\u03a9"], "k\u03a9"),
        (["\u212a", "K"], "K"),
        (["\u212b", "A\u030a", "\u00c5"], "\u00c5"),
        (["\u2103", "\u00b0C", "\u00baC", "\u02daC", "\u00b0C "], "\u00b0C"),
        (["\u2109", "\u00b0F", "\u00baF"], "\u00b0F"),
        (["kW\u22c5h", "kW\u00b7h", "kW\u0387h"], "kW\u00b7h"),
        (["n\u00ba"], "n\u00ba"),
        (["%RH"], "%RH"),
        (["", " ", "\u3000", None], None),
    ],
)
def test_unit_has_one_spelling(spellings: list[str | None], expected: str | None) -> None:
    """Signs that look alike are one; others stay apart."""
    assert {expected} == {canonical_unit(unit) for unit in spellings}


@given(st.text(max_size=140))
def test_spelling_is_final_and_fits(text: str) -> None:
    """What has its one spelling keeps it; names stay within the limits of the columns, or are as they were."""
    for canonical in (canonical_name, canonical_point, canonical_unit):
        once = canonical(text)
        assert once is None or once == canonical(once)
    assert canonical_point(text) == text or 0 < len(canonical_point(text)) <= 128
    assert canonical_unit(text) in (None, text) or len(canonical_unit(text) or "") <= 64


def test_topic_of_site_and_device_has_one_spelling() -> None:
    """Composed, decomposed, with white space around: one device."""
    routes = [
        read_topic(f"traksense/t/{site}/{device}/telem")
        for site, device in ((COMPOSED, COMPOSED), (DECOMPOSED, f"{DECOMPOSED} "), (f"\u2003{COMPOSED}", DECOMPOSED))
    ]

    assert {f"t/{COMPOSED}/{COMPOSED}"} == {route.path if route else None for route in routes}
    assert routes[0] == routes[1] == routes[2]


@pytest.mark.parametrize(
    ("topic", "why"),
    [
        (f"traksense/{DECOMPOSED}/s/d/telem", "the tenant's name is not in Unicode's composed form (NFC)"),
        ("traksense/acme /s/d/telem", "the tenant's name has white space around it"),
        ("traksense/ac\u202eme/s/d/telem", "the tenant's name has a format character, U+202E"),
        ("traksense/ac\x1b[31mme/s/d/telem", "the tenant's name has a control character, U+001B"),
        ("traksense/t/s\u200b/d/telem", "the site's name has a format character, U+200B"),
        ("traksense/t/s/d\x07/telem", "the device's name has a control character, U+0007"),
        ("traksense/t/ /d/telem", "the site's name is empty"),
        (f"traksense/t/s/{'d' * 129}/telem", "the device's name has 129 characters, the limit is 128"),
        ("traksense/t/s/d/x", "not traksense/{tenant}/{site}/{device}/telem|ack|event"),
    ],
)
def test_topic_that_cannot_be_says_why(topic: str, why: str) -> None:
    """A tenant's name is refused rather than rewritten; what does not show is in no name."""
    assert Router().route(topic) is None
    assert _describe_topic(topic).startswith(f"{why}: ")


@given(st.text(max_size=20))
def test_tenant_name_is_never_rewritten(name: str) -> None:
    """What a topic names is what the rows are walled by."""
    route = read_topic(f"traksense/{name}/s/d/telem")

    assert route is None or name == route.tenant == canonical_name(name)
    if tenant_fault(name) is None and "/" not in name:
        assert route is not None


@given(st.text())
def test_printable_leaves_nothing_that_acts(text: str) -> None:
    """Whatever is shown can be encoded, and holds neither control nor format characters; what was harmless stays."""
    shown = printable(text)

    assert shown == shown.encode().decode()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)
    assert (shown == text) == text.isprintable()
