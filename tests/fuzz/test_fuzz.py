"""Each harness holds for its seeds, and for what atheris makes of them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.fuzz import harnesses
from tests.patience import HANG_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

RUNS = 20_000
MAX_RSS_MB = 512
SEEDS = [
    pytest.param(name, path, id=f"{name}/{path.name}") for name in harnesses.NAMES for path in harnesses.seeds(name)
]


# The mqtt5 package panics at some of them. Its codec makes an error of that; what the panic leaves behind stays.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("name", "path"), SEEDS)
def test_harness_holds_for_its_seed(name: str, path: Path) -> None:
    """What was found once, and what the fuzzer begins with."""
    harnesses.load(name)(path.read_bytes())


@pytest.mark.parametrize("name", harnesses.NAMES)
def test_fuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    """A short run from the seeds; the same inputs each time, as long as the code is the same."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has wheels for Linux on x86-64 (extra `fuzz`)")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    arguments = [
        f"-runs={RUNS}",
        "-seed=1",
        f"-timeout={HANG_SECONDS:.0f}",
        f"-rss_limit_mb={MAX_RSS_MB}",
        f"-artifact_prefix={tmp_path}/",
    ]
    command = [sys.executable, "-m", "tests.fuzz", name, str(corpus), str(harnesses.HERE / "seeds" / name), *arguments]
    # Linux hands the peak of the memory down to a program that is started; a small process between takes only its own.
    command = ["sh", "-c", '"$0" "$@"; exit $?', *command]

    run = subprocess.run(command, cwd=harnesses.HERE.parents[1], capture_output=True, text=True, check=False)

    found = [f"{path.name}: {path.read_bytes()!r}" for path in tmp_path.iterdir() if path.is_file()]
    assert run.returncode == 0, "\n".join([*found, run.stdout[-4000:], run.stderr[-4000:]])
