"""Coverage-guided fuzzing (atheris): what a stranger may send or write never breaks a promise.

A harness is a module `fuzz_NAME.py` here, with seeds in `seeds/NAME/`, small files, each an input. The module has one
function:

    def one_input(data: bytes) -> None

It raises when an invariant does not hold; whatever it lets through is fine. It is called some ten thousand times a
second, in one process: no files, no network, and nothing remembered from one call to the next.

`test_fuzz.py` finds the harnesses by their names, gives each seed to its harness, and has atheris try a few thousand
more. To look for longer, until it finds something or is stopped, with any arguments of libFuzzer:

    python -m tests.fuzz NAME [CORPUS-DIRECTORY] [-max_total_time=600]

What it finds is put into the working directory as `crash-…`; once that is fixed, the file becomes a seed.
"""
