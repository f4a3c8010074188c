"""Shows the state while the demo runs: as a page on a terminal, else as a line now and then."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import trio

from traksense.terminal import Screen, say
from traksense.tools.demo.lines import LINE_SECONDS, status_line
from traksense.tools.stack import StackError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from traksense.tools.demo.state import State

FRAME_SECONDS: Final = 0.25


def chosen_display(screenshot: Path | None) -> Callable[[State], Awaitable[None]]:
    """What shows the state until it is cancelled: the page if stdout is a terminal that can show it, else lines.

    Args:
        screenshot: Where the page will be wanted as a picture too.

    Raises:
        StackError: The package that draws it is missing, or there is no place for the picture.
    """
    if screenshot and not screenshot.absolute().parent.is_dir():
        raise StackError(f"no directory for the screenshot: {screenshot.absolute().parent}")
    terminal = Screen.of(sys.stdout).draws
    if terminal or screenshot:
        try:
            import rich  # noqa: F401
        except ImportError:
            raise StackError("the live view needs rich: pip install 'traksense[demo]'") from None
    return show_page if terminal else show_lines


async def show_page(state: State) -> None:
    """Draw until cancelled; the last page stays on the terminal."""
    from rich.console import Console
    from rich.live import Live

    from traksense.tools.demo.view import page

    console = Console()
    size = console.size
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                if console.size != size:
                    # Lines of the last page are wrapped now: nobody knows how many there are to go back over.
                    size = console.size
                    console.clear()
                live.update(page(state, console.width, console.height), refresh=True)
                await trio.sleep(FRAME_SECONDS)
        finally:
            live.update(page(state, console.width, console.height), refresh=True)


async def show_lines(state: State) -> None:
    """Print until cancelled, and once more."""
    try:
        while True:
            await trio.sleep(LINE_SECONDS)
            say(status_line(state), flush=True)
    finally:
        say(status_line(state), flush=True)


def take_screenshot(state: State, path: Path) -> None:
    """Save the page as SVG.

    Raises:
        StackError: The file cannot be written.
    """
    from traksense.tools.demo.view import svg

    try:
        path.write_text(svg(state, "traksense demo"), encoding="utf-8")
    except OSError as error:
        raise StackError(f"cannot write the screenshot: {error}") from error
