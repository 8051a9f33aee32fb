"""Every exception that Overnight raises on purpose.

OvernightError
 |- UserError            the user can mend it: one line, exit code 2, never a traceback
 |   |- GridError        a grid file (file, line, key)
 |   |- ConfigError      etc/overnight.toml
 |   |- QueueError       var/queue.db is corrupt, newer, or refuses a change
 |   |- ModelError       the model store or an engine cannot give what was asked for
 |- CellError            how one attempt ended: recorded as data, with an outcome
     |- TranscriptCorrupt    outcome `corrupt`
     |- Diverged             outcome `diverged`
     |- ConditionsChanged    outcome `conditions_changed`
     |- NoSpace              outcome `yielded`
     |- Busy                 outcome `yielded`: somebody else holds the transcript
     |- ExperimentFailed     outcome `failed`
"""

from __future__ import annotations

from overnight.line import clear


class OvernightError(Exception):
    """Base of everything that Overnight raises on purpose. `str()` is one clear line, whatever it quotes."""

    def __str__(self) -> str:
        return clear(super().__str__())


class UserError(OvernightError):
    """Something that the user can mend. `str()` is the one line to print."""

    exit_code = 2


class GridError(UserError):
    """A grid file that cannot be used: `FILE:LINE: KEY: what is wrong; expected ...; did you mean ...`."""

    def __init__(self, message: str, *, file: str = "", line: int | None = None, key: str = "") -> None:
        self.file, self.line, self.key = file, line, key
        place = f"{file}:{line}" if file and line is not None else file
        super().__init__(": ".join(part for part in (place, key, message) if part))


class ConfigError(UserError):
    """etc/overnight.toml cannot be used."""


class QueueError(UserError):
    """var/queue.db cannot be used, or refuses what was asked of it."""


class ModelError(UserError):
    """The model store or an engine cannot give what was asked for."""


class CellError(OvernightError):
    """Ends an attempt. `outcome` and `reason_code` go into the queue, `str()` is the sentence for people."""

    outcome = "failed"
    reason_code = "failed"


class TranscriptCorrupt(CellError):
    """A transcript that cannot be continued truthfully; nothing was touched."""

    outcome = "corrupt"
    reason_code = "transcript_corrupt"


class Diverged(CellError):
    """Replay computed other logits than the transcript records."""

    outcome = "diverged"
    reason_code = "replay_diverged"


class ConditionsChanged(CellError):
    """The transcript was begun under other conditions (library versions, CPU, model, threads, ...)."""

    outcome = "conditions_changed"
    reason_code = "conditions_changed"


class NoSpace(CellError):
    """The disk is full. Every finished turn is on disk; the cell goes on when there is room."""

    outcome = "yielded"
    reason_code = "no_space"


class Busy(CellError):
    """Another process still holds the transcript's lock."""

    outcome = "yielded"
    reason_code = "transcript_locked"


class ExperimentFailed(CellError):
    """The experiment itself went wrong."""
