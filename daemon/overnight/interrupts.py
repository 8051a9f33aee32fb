"""Ctrl-C around a command. Nothing but `signal` is imported here: this comes first of all."""

from __future__ import annotations

import signal


def end_silently() -> None:
    """Ctrl-C ends this process at once, where Python would show a traceback of whatever is being imported.

    Somebody's own handler stays, and so does being deaf to it, as what a script starts in the background is."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def heed() -> None:
    """Ctrl-C is an exception again, which a command can tidy up after."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
