"""One module a command: its arguments, and a `main` that returns the exit status."""
