"""What a restore unpacked that was killed: a copy of a whole home, hidden in the home, of no use to anybody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from overnight import procfs
from overnight.backup import layout


def of_restores(home: Path) -> Iterator[Path]:
    """Folders whose process is gone. (One that lives may be another by now: then it stays for the next look.)"""
    for path in sorted(home.glob(f"{layout.STAGING}*")):
        pid = re.fullmatch(rf"{re.escape(layout.STAGING)}(\d+)", path.name)
        if pid and path.is_dir() and not path.is_symlink() and procfs.start_ticks(int(pid[1])) is None:
            yield path
