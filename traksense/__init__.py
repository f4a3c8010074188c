"""traksense: telemetry from MQTT into PostgreSQL and TimescaleDB, acknowledged after the commit and stored once."""

from typing import Final

__version__: Final = "0.1.0"
