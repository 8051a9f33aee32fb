"""The wall clock of every Python process that is started with this folder on PYTHONPATH is off by the seconds in the
file $CLOCK_SHIFT, from one call to the next. Monotonic clocks are left alone, and so is the machine's."""

from __future__ import annotations

import datetime
import os
import time

_FILE = os.environ.get("CLOCK_SHIFT", "")
_real_time, _real_time_ns, _RealDatetime = time.time, time.time_ns, datetime.datetime
_real_gmtime, _real_localtime, _real_strftime = time.gmtime, time.localtime, time.strftime


def _shift_s() -> float:
    try:
        fd = os.open(_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0.0
    try:
        return float(os.read(fd, 64) or b"0")
    finally:
        os.close(fd)


def shifted_time() -> float:
    return _real_time() + _shift_s()


def shifted_time_ns() -> int:
    return _real_time_ns() + int(_shift_s() * 1e9)


class _Kind(type):
    """A datetime that was made elsewhere is one as well."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _RealDatetime)


class ShiftedDatetime(_RealDatetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
        return _RealDatetime.fromtimestamp(shifted_time(), tz)

    @classmethod
    def utcnow(cls) -> datetime.datetime:  # type: ignore[override]
        return _RealDatetime.fromtimestamp(shifted_time(), datetime.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> datetime.datetime:  # type: ignore[override]
        return cls.now()


if _FILE:
    time.time, time.time_ns = shifted_time, shifted_time_ns
    time.gmtime = lambda seconds=None: _real_gmtime(shifted_time() if seconds is None else seconds)
    time.localtime = lambda seconds=None: _real_localtime(shifted_time() if seconds is None else seconds)
    time.strftime = lambda form, moment=None: _real_strftime(form, time.localtime() if moment is None else moment)
    datetime.datetime = ShiftedDatetime  # type: ignore[misc]
