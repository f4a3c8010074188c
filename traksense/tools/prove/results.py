"""From runs to figures: plain data, for the table and for machines."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from traksense.tools.prove.run import Run

CONFIDENCE: Final = 0.95


@attrs.frozen(kw_only=True)
class Result:
    """What is left of a run.

    Attributes:
        seed: Its seed.
        seconds: How long it took.
        settings: Those of the service's variables that the seed has chosen.
        schedule: The faults that were planned.
        figures: What was counted, by name.
        injected: How often each kind of fault took effect.
        without_effect: How often its moment did not come.
        resumed: By kind of fault, the longest time from its end to the next message that was stored, in seconds.
        findings: What must be zero: by name, the count and the first cases in words.
        lost_by_broker: The same for what the broker itself lost.
    """

    seed: int
    seconds: float
    settings: dict[str, str]
    schedule: list[dict[str, Any]]
    figures: dict[str, int]
    injected: dict[str, int]
    without_effect: dict[str, int]
    resumed: dict[str, float]
    findings: dict[str, dict[str, Any]]
    lost_by_broker: list[str]

    @property
    def passed(self) -> bool:
        """Whether all that must be zero is."""
        return not any(finding["count"] for finding in self.findings.values())


def result(run: Run) -> Result:
    """The figures of a run that has ended."""
    stage, judgement, publisher, ledger = run.stage, run.judgement, run.publisher, run.ledger
    assert stage is not None
    assert judgement is not None
    assert publisher is not None
    assert ledger is not None
    assert run.promises is not None
    totals = ledger.totals()
    figures = {
        "published": len(run.publishing.messages),
        "confirmed": judgement.confirmed,
        "stored": judgement.stored,
        "dead_lettered": judgement.dead,
        "removed": judgement.removed,
        "repeated": judgement.repeated,
        "published_again": publisher.counters.retransmitted,
        "delivered": run.witness.delivered.total(),
        "redelivered": run.witness.redelivered,
        "duplicates_refused": totals["duplicates"],
        "database_retries": totals["store retries"],
        "service_starts": stage.replicas.starts,
        "service_kills": stage.replicas.kills,
        "connections": run.witness.connections,
        "sessions_lost": run.witness.sessions_lost,
        "faults_injected": sum(run.injected.values()),
        "promises_checked": run.promises.checked,
        "ledgers_checked": ledger.scrapes,
        "lost_by_broker": judgement.lost_by_broker.count,
    }
    chosen = ("MQTT_VERSION", "MQTT_READER", "DB_POOL_MAX", "INGEST_QUEUE_MAX", "INGEST_BATCH_SIZE", "INGEST_BATCH_MS")
    return Result(
        seed=run.seed,
        seconds=round(run.seconds, 1),
        settings={name: stage.environment[name] for name in chosen},
        schedule=[attrs.asdict(injection) for injection in run.schedule],
        figures=figures,
        injected=dict(sorted(run.injected.items())),
        without_effect=dict(sorted(run.without_effect.items())),
        resumed={name: round(seconds, 2) for name, seconds in sorted(run.resumed.longest.items())},
        findings={name: {"count": f.count, "cases": f.texts} for name, f in run.findings.items()},
        lost_by_broker=judgement.lost_by_broker.texts,
    )


@attrs.frozen
class Total:
    """All runs together."""

    results: Sequence[Result]

    @property
    def failed(self) -> int:
        """Runs in which something was found."""
        return sum(not r.passed for r in self.results)

    @property
    def upper_bound(self) -> float:
        """The 95 % upper bound on the share of runs that fail, if none did: about 3/n. 1 if one did, or none was made.

        Source: the exact binomial bound for no success in n trials, 1 - 0.05^(1/n); "rule of three".
        """
        if self.failed or not self.results:
            return 1.0
        return float(1 - (1 - CONFIDENCE) ** (1 / len(self.results)))

    def figures(self) -> dict[str, int]:
        """The sums."""
        total: Counter[str] = Counter()
        for r in self.results:
            for name, value in r.figures.items():
                total[name] += value
        return dict(total)

    def findings(self) -> dict[str, int]:
        """The sums of what must be zero."""
        total: Counter[str] = Counter()
        for r in self.results:
            for name, finding in r.findings.items():
                total[name] += finding["count"]
        return dict(total)

    def planned(self) -> set[str]:
        """The kinds of faults that were to be injected."""
        return {injection["fault"] for r in self.results for injection in r.schedule}

    def faults(self) -> dict[str, int]:
        """How often each kind of fault took effect."""
        total: Counter[str] = Counter()
        for r in self.results:
            total.update(r.injected)
        return dict(sorted(total.items()))

    def resumed(self) -> dict[str, float]:
        """The longest of all runs, by kind of fault."""
        total: dict[str, float] = {}
        for r in self.results:
            for name, seconds in r.resumed.items():
                total[name] = max(total.get(name, 0.0), seconds)
        return dict(sorted(total.items()))

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "verdict": "failed" if self.failed else "passed",
            "runs_made": len(self.results),
            "runs_failed": self.failed,
            "failure_rate_upper_bound_95": None if self.failed else round(self.upper_bound, 4),
            "figures": self.figures(),
            "findings": self.findings(),
            "faults": self.faults(),
            "resumed_seconds": self.resumed(),
            "runs": [attrs.asdict(r) | {"passed": r.passed} for r in self.results],
        }
