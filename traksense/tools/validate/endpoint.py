"""The service's HTTP endpoint, as a monitoring system sees it."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import trio

from traksense.errors import ConfigError, TraksenseError
from traksense.tools.stack import Samples, parse_metrics

if TYPE_CHECKING:
    from traksense.config import Settings

HTTP_SECONDS: Final = 5.0
BODY_MAX_BYTES: Final = 16 * 1024 * 1024

EVERYWHERE: Final = ("0.0.0.0", "::", "")  # noqa: S104  (compared with, not bound to)


class EndpointError(TraksenseError):
    """It does not answer, or not as the service would."""


class Endpoint:
    """Scrapes, and holds every scrape against the ledger's identity.

    Attributes:
        url: Without a path.
        scrapes: How many there were.
        imbalances: One line for each at which the identity did not hold.
        first: The first scrape.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.scrapes = 0
        self.imbalances: list[str] = []
        self.first: Samples | None = None

    async def get(self, path: str) -> tuple[int, str]:
        """GET: the status and the body.

        Raises:
            EndpointError: There is no answer.

        Trio-flavored.
        """
        return await trio.to_thread.run_sync(_get, f"{self.url}{path}", abandon_on_cancel=True)

    async def scrape(self) -> Samples:
        """GET /metrics.

        Raises:
            EndpointError: No answer, or none that can be read.

        Trio-flavored.
        """
        status, body = await self.get("/metrics")
        if status != 200:
            raise EndpointError(f"{self.url}/metrics answers {status}")
        try:
            samples = parse_metrics(body)
        except ValueError as error:
            raise EndpointError(f"{self.url}/metrics is not Prometheus text: {error}") from error
        self.scrapes += 1
        if self.first is None:
            self.first = samples
        received = samples.total("ingest_messages_total")
        ended = samples.total("ingest_messages_ended_total")
        in_flight = samples.total("ingest_in_flight_messages")
        if received != ended + in_flight:
            self.imbalances.append(f"{received:.0f} received, {ended:.0f} ended + {in_flight:.0f} in flight")
        return samples


def endpoint_url(settings: Settings, given: str | None) -> str:
    """Where the endpoint is: as given, or on this machine at METRICS_PORT.

    Raises:
        ConfigError: That is no address.
    """
    if given is None:
        if settings.metrics_port == 0:
            raise ConfigError(["METRICS_PORT: 0 means any port, so say --metrics-url"])
        host = "localhost" if settings.metrics_host in EVERYWHERE else settings.metrics_host
        return f"http://{f'[{host}]' if ':' in host else host}:{settings.metrics_port}"
    try:
        parts = urlsplit(given.strip())
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(["--metrics-url: must look like http://host:9100"])
    return given.strip().rstrip("/").removesuffix("/metrics").rstrip("/")


def _get(url: str) -> tuple[int, str]:
    # Without the proxies of the environment: they are for the Internet, and this is next door.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=HTTP_SECONDS) as answer:
            return answer.status, answer.read(BODY_MAX_BYTES).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(BODY_MAX_BYTES).decode(errors="replace")
    except urllib.error.URLError as error:
        reason = error.reason
        raise EndpointError(f"no answer from {url}: {getattr(reason, 'strerror', None) or reason}") from error
    except (OSError, ValueError) as error:
        raise EndpointError(f"no answer from {url}: {getattr(error, 'strerror', None) or error}") from error
