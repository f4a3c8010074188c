"""The ten queries of ops/reading.md on a real TimescaleDB where there is no server with one: see `pglite_fixtures`."""

from __future__ import annotations

from pglite_fixtures import pglite_directory, schema_server_module
from test_reading import (
    database,
    reader,
    test_question_1,
    test_question_2,
    test_question_3,
    test_question_4,
    test_question_5,
    test_question_6,
    test_question_6_in_a_zone_of_half_hours,
    test_question_7,
    test_question_8,
    test_question_9,
    test_question_10,
    test_question_of_nobody,
)

# Not as a plugin: these fixtures have the names of `schema_fixtures`, and a plugin's would serve all modules.
__all__ = [
    "database",
    "pglite_directory",
    "reader",
    "schema_server_module",
    "test_question_1",
    "test_question_2",
    "test_question_3",
    "test_question_4",
    "test_question_5",
    "test_question_6",
    "test_question_6_in_a_zone_of_half_hours",
    "test_question_7",
    "test_question_8",
    "test_question_9",
    "test_question_10",
    "test_question_of_nobody",
]
