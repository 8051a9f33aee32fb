"""One execution of a reader: it may refuse, with one clear line, and nothing else."""

from __future__ import annotations

import resource
import signal
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fuzz.target import Case, Target, Wrong, check_line

CPU_S, WALL_S = 5.0, 30.0
"""No reader may take so long. Processor time, since the machine may be busy; and some wall time, since one may wait."""
ROOM_BYTES = 768 * 2**20
"""What may be mapped beyond what the process has when the first reader is called: one that believes in a length of a
gigabyte meets MemoryError."""


class Hang(BaseException):
    """No Exception, so that no reader can swallow it."""


def _late(number: int, _frame: FrameType | None) -> None:
    raise Hang("more than 5 s of processor time" if number == signal.SIGVTALRM else "more than 30 s")


def arm() -> None:
    """Once a process, before the first execution."""
    for number in (signal.SIGALRM, signal.SIGVTALRM):
        signal.signal(number, _late)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM_BYTES, hard))


@dataclass(frozen=True, slots=True)
class Outcome:
    """shape: what kind of answer it was. complaint: what is wrong with it, None when nothing is."""

    shape: str
    complaint: str | None = None


def execute(target: Target, case: Case) -> Outcome:
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    try:
        return Outcome(f"= {target.read(case)}")
    except target.clear as error:
        try:
            return Outcome(f"{type(error).__name__} {check_line(str(error))}")
        except Wrong as wrong:
            return Outcome("unclear", f"{type(error).__name__}: {wrong}")
    except Hang as hang:
        return Outcome("hang", f"it hangs: {hang} ({_where(hang)})")
    except Wrong as wrong:
        return Outcome("wrong", f"wrong: {wrong} ({_where(wrong)})")
    except BaseException as error:  # noqa: BLE001 - every other end of a reader is what is looked for
        said = " ".join(ascii(str(error))[1:200].split())
        return Outcome("crash", f"{type(error).__name__}: {said} ({_where(error)})")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _where(error: BaseException) -> str:
    """The last places within the product."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/overnight" in frame.filename]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:2] + frames[2:][-2:]]
    return " < ".join(reversed(places)) or "outside the product"
