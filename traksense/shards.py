"""Which replica reads which tenants: a rule that every replica computes by itself, from the same list.

MQTT filters cannot hash, so a shard is a list of filters, one for each of its tenants (or of a tenant's sites). Who
gets an entry that is not pinned is decided by rendezvous hashing: each shard draws a number for the entry, the highest
has it. So the order of the list does not matter, an entry that is added or removed moves no other, and the n-th shard
takes a n-th of the entries and moves nothing between the others (ops/decisions/0033).
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Final

import attrs

from traksense.names import tenant_fault

if TYPE_CHECKING:
    from collections.abc import Iterable

COUNT_MAX: Final = 1000
"""More shards than this are a mistake. Chosen by guess."""

_WILDCARDS: Final = frozenset("+#")


@attrs.frozen
class Entry:
    """One line of `MQTT_TENANTS`: a tenant, or one of its sites.

    Attributes:
        tenant: Its name, as in topics.
        site: The site, or None for all of them.
        pinned: The shard that has it whatever the rule says, from 1; or None.
    """

    tenant: str
    site: str | None = None
    pinned: int | None = None

    def __str__(self) -> str:
        return self.tenant if self.site is None else f"{self.tenant}/{self.site}"


@attrs.frozen
class Layout:
    """How the topics are divided.

    Attributes:
        topics: The filters of all replicas together, with the tenant (and for sites, the site) left open.
        entries: What is divided.
        count: Into how many shards, numbered from 1.
    """

    topics: tuple[str, ...]
    entries: tuple[Entry, ...]
    count: int

    def shard_of(self, entry: Entry) -> int:
        """Who has this entry."""
        return entry.pinned or _highest_draw(str(entry), self.count)

    def filters_of(self, entry: Entry) -> tuple[str, ...]:
        """The filters for this entry."""
        return tuple(narrow(topic, entry) for topic in self.topics)

    def filters(self, shard: int) -> tuple[str, ...]:
        """The filters of this shard, in the order of the list; none if it has no entries."""
        return tuple(
            topic for entry in self.entries if self.shard_of(entry) == shard for topic in self.filters_of(entry)
        )

    @functools.cached_property
    def by_tenant(self) -> dict[str, list[str]]:
        """The filters of all shards, by tenant."""
        found: dict[str, list[str]] = {}
        for entry in self.entries:
            found.setdefault(entry.tenant, []).extend(self.filters_of(entry))
        return found

    def overlapping(self, topic: str) -> list[str]:
        """The filters of any shard that match some topic which this filter matches too."""
        tenant = _tenant(topic)
        if tenant is not None:
            candidates: Iterable[str] = self.by_tenant.get(tenant, ())
        else:
            candidates = (other for filters in self.by_tenant.values() for other in filters)
        return [other for other in candidates if overlap(topic, other)]

    def parts(self, topic: str) -> list[str]:
        """What this filter, shared or not, can bring of each entry: it, narrowed to the entry; none if it brings none
        of any.
        """
        topic, tenant = unshared(topic), _tenant(topic)
        entries = self.entries if tenant is None else self.entries_of.get(tenant, ())
        levels = topic.split("/")
        return [narrow(topic, entry) for entry in entries if _meets(levels, entry)]

    @functools.cached_property
    def entries_of(self) -> dict[str, list[Entry]]:
        """The entries, by tenant."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.tenant, []).append(entry)
        return found

    def faults(self) -> list[tuple[str, str]]:
        """What is wrong with it: the variable and a line for people."""
        found: list[tuple[str, str]] = []
        if not 1 <= self.count <= COUNT_MAX:
            found.append(("MQTT_SHARD_COUNT", f"must be 1-{COUNT_MAX}"))
        seen: set[str] = set()
        whole = {entry.tenant for entry in self.entries if entry.site is None}
        for entry in self.entries:
            if fault := tenant_fault(entry.tenant):
                found.append(("MQTT_TENANTS", f"{entry.tenant}: the name {fault}; its messages would be dead letters"))
            if str(entry) in seen:
                found.append(("MQTT_TENANTS", f"{entry} is listed twice"))
            elif entry.site is not None and entry.tenant in whole:
                found.append(("MQTT_TENANTS", f"{entry.tenant} is listed as a whole and by site ({entry})"))
            if entry.pinned is not None and not 1 <= entry.pinned <= self.count:
                found.append(("MQTT_TENANTS", f"{entry} is pinned to shard {entry.pinned} of {self.count}"))
            seen.add(str(entry))
        sites = any(entry.site is not None for entry in self.entries)
        found += [("MQTT_TOPICS", fault) for topic in self.topics if (fault := _topic_fault(topic, sites=sites))]
        return found


def parse_entries(text: str) -> tuple[Entry, ...]:
    """Read `acme, beta=2, gamma/plant-1`: commas or lines between the entries, comments from `#` to the end of a line.

    Raises:
        ValueError: An entry is none; the text says which.
    """
    lines = (line.partition("#")[0] for line in text.splitlines())
    return tuple(_parse_entry(part.strip()) for line in lines for part in line.split(",") if part.strip())


def _parse_entry(text: str) -> Entry:
    name, pinned, shard = text.partition("=")
    tenant, split, site = name.strip().partition("/")
    if not tenant or "+" in name or "/" in site or (split and not site):
        raise ValueError(f"must be tenants or tenant/site, not {text!r}")
    if pinned and not shard.strip().isdecimal():
        raise ValueError(f"must have the number of a shard behind the sign in {text!r}")
    return Entry(tenant, site if split else None, int(shard) if pinned else None)


def narrow(topic: str, entry: Entry) -> str:
    """The filter with the tenant (and the site) of this entry in the levels that it leaves open."""
    levels = topic.split("/")
    for place, name in ((1, entry.tenant), (2, entry.site)):
        if name is None:
            break
        if levels[place - 1] == "#":
            levels[place - 1 :] = ["+", name, "#"]
        elif levels[place] == "#":
            levels[place:] = [name, "#"]
        else:
            levels[place] = name
    return "/".join(levels)


def _meets(levels: list[str], entry: Entry) -> bool:
    """Whether the filter of these levels matches some topic of the entry."""
    for place, name in ((1, entry.tenant), (2, entry.site)):
        if levels[place - 1 : place] == ["#"] or levels[place : place + 1] == ["#"]:
            return True
        if name is not None and levels[place : place + 1] not in ([name], ["+"]):
            return False
    return True


class Filters:
    """Filters to ask many questions of: by tenant, since a list of thousands is asked once for each of thousands."""

    def __init__(self, filters: Iterable[str]) -> None:
        self._by_tenant: dict[str | None, list[str]] = {}
        for topic in filters:
            self._by_tenant.setdefault(_tenant(topic), []).append(topic)

    def cover(self, topic: str) -> bool:
        """Whether one of them covers it."""
        candidates = [*self._by_tenant.get(None, ())]
        if (tenant := _tenant(topic)) is not None:
            candidates += self._by_tenant.get(tenant, ())
        return any(covers(one, topic) for one in candidates)


def _tenant(topic: str) -> str | None:
    """The tenant that the filter names, or None if it leaves it open."""
    levels = unshared(topic).split("/")
    return levels[1] if len(levels) > 1 and not _WILDCARDS & {*levels[:2]} else None


def overlap(one: str, other: str) -> bool:
    """Whether some topic matches both filters, shared or not. Source: MQTT 5.0 §4.7."""
    mine, theirs = unshared(one).split("/"), unshared(other).split("/")
    for place in range(max(len(mine), len(theirs))):
        # `a/#` also matches `a` itself.
        if mine[place : place + 1] == ["#"] or theirs[place : place + 1] == ["#"]:
            return True
        if place >= len(mine) or place >= len(theirs):
            return False
        if mine[place] != theirs[place] and "+" not in (mine[place], theirs[place]):
            return False
    return True


def covers(topic_filter: str, topic: str) -> bool:
    """Whether a filter, shared or not, matches a topic, or everything that another filter matches.

    Source: MQTT 5.0 §4.7, §4.8.2.
    """
    levels, names = unshared(topic_filter).split("/"), unshared(topic).split("/")
    for place, level in enumerate(levels):
        if level == "#":
            return True
        if place >= len(names) or names[place] == "#" or level not in ("+", names[place]):
            return False
    return len(levels) == len(names)


def unshared(topic: str) -> str:
    """The filter without `$share/{group}/`. Source: MQTT 5.0 §4.8.2."""
    return topic.split("/", 2)[2] if topic.startswith("$share/") and topic.count("/") > 1 else topic


def _highest_draw(name: str, count: int) -> int:
    """Rendezvous hashing; BLAKE2 because it is the same in every Python and on every machine, unlike `hash`."""
    return max(range(1, count + 1), key=lambda shard: _draw(name, shard))


def _draw(name: str, shard: int) -> bytes:
    return hashlib.blake2b(f"{shard}/{name}".encode(), digest_size=8).digest()


def _topic_fault(topic: str, *, sites: bool) -> str | None:
    if topic.startswith("$share/"):
        return f"a shared subscription divides by itself, MQTT_SHARD_COUNT would divide it again: {topic}"
    levels = topic.split("/")
    if len(levels) < 2 or _WILDCARDS & set(levels[0]) or levels[1] not in ("+", "#"):
        return f"with MQTT_SHARD_COUNT the tenant has to be left open, as in traksense/+/+/+/telem: {topic}"
    if sites and levels[1] == "+" and levels[2:3] not in (["+"], ["#"]):
        return f"with sites in MQTT_TENANTS the site has to be left open, as in traksense/+/+/+/telem: {topic}"
    return None
