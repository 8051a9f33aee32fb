"""What is queued for each cell of a grid that is done: the analysis of its conversation, as a command cell of another
grid, with a claim, a cap and a verdict like any other.

The queue adds it in the transaction that records the cell's end (`queue/follow.py`). Nothing in it names a path of this
installation: a queue may be moved to another home, and Python may be another one by then.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overnight.grid.schema import Analysis

SUFFIX = ".analysis"
LONGEST_NAME = 48 - len(SUFFIX)
KEY_CHARACTERS = 6
"""Its key is the cell's and `.1`, `.2`, ...: how often it has been analysed."""

_GRACE_S, _TIMEOUT_S, _TRIES = 10.0, 2 * 3600.0, 3
_MIB = 2**20
_HINTS = {"tfidf": 96 * _MIB, "embedding": 512 * _MIB}
"""Until the first ones are learned from. (*Measured*: 32 MiB with tfidf, 300 MiB with all-minilm-l6-v2.)"""

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""The cell takes one slot. And a limit on data counts what the threads of a numeric library reserve."""


def then(name: str, analysis: Analysis) -> dict[str, Any]:
    """For the policy of the grid of that name: which grid a cell that is done has a cell added to, and what that is."""
    return {
        "grid": f"{name}{SUFFIX}",
        "policy": {
            "timeout_s": _TIMEOUT_S,
            "tries": _TRIES,
            "memory_bytes": max(_HINTS[backend] for backend in backends(analysis)),
            "grace_s": _GRACE_S,
            "cap": "auto",
        },
        "template": {
            "v": 1,
            "kind": "command",
            "command": _line(analysis),
            "shell": True,
            "env": {**_ONE_THREAD, "TOKENIZERS_PARALLELISM": "false"},
            "cwd": "scratch",
            "keep": [],
            "threads": 1,
        },
    }


def backends(analysis: Analysis) -> list[str]:
    """Which backends a grid's options ask for, the one that judges collapses first."""
    wanted = [analysis.backend, *([analysis.timeseries] if analysis.timeseries != "off" else [])]
    return list(dict.fromkeys(wanted))


def _line(analysis: Analysis) -> str:
    """For /bin/sh, which becomes it. -P: nothing is imported from the folder that it runs in."""
    words = ["-P", "-m", "overnight.analysis.jobs", "--after-cell", "--backend", *backends(analysis)]
    words += ["--method", analysis.method, *(["--model", analysis.model] if analysis.model is not None else [])]
    return f'exec "$OVERNIGHT_PYTHON" {shlex.join(words)}'
