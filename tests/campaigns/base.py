"""What a campaign is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


class Violation(AssertionError):
    """A promise that did not hold. `str()` is the sentence for the report."""


@dataclass(frozen=True)
class Round:
    """One independent part of a campaign. key: unique in it, a few words; arguments: JSON values for `run`."""

    key: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class Finding:
    """What a round found.

    counts: added up over the rounds, such as {"kills": 25, "kills of daemon": 4}.
    seconds: collected over the rounds, told as p50, p99 and the most, such as {"recovery": [0.4, 1.2]}.
    figures: other measures, kept as they are for each round, such as {"PSS growth of the daemon, bytes": 4096}.
    violations: one sentence each, with what is needed to see it again. None = every promise held.
    """

    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def count(self, what: str, times: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + times

    def took(self, what: str, seconds: float) -> None:
        self.seconds.setdefault(what, []).append(seconds)

    def expect(self, held: bool, otherwise: str) -> None:
        """Note a violation and go on; raise `Violation` instead where going on makes no sense."""
        if not held:
            self.violations.append(otherwise)

    def add(self, others: Iterable[Finding]) -> Finding:
        """Take in what other findings hold."""
        for other in others:
            for what, times in other.counts.items():
                self.count(what, times)
            for what, taken in other.seconds.items():
                self.seconds.setdefault(what, []).extend(taken)
            self.figures.update(other.figures)
            self.violations.extend(other.violations)
        return self


class Campaign(ABC):
    """name: of its report and on the command line. tries: what is done, as a row of the table of docs/guarantees.md
    says it. proves: the numbers of the promises there."""

    name: ClassVar[str]
    tries: ClassVar[str]
    proves: ClassVar[tuple[str, ...]]
    alone: ClassVar[bool] = False
    """Its quick rounds look at clocks or at memory as it fills: no other test may run beside them."""
    instead: ClassVar[str] = ""
    """The test that tries as much in every run of the tests, where its quick rounds would take too long."""

    @abstractmethod
    def rounds(self, seed: int, *, quick: bool) -> Sequence[Round]:
        """The same for the same seed. quick: the few, of some seconds altogether, that `make test` runs."""

    @abstractmethod
    def run(self, one: Round, folder: Path) -> Finding:
        """Run one round in `folder`, which is empty and is removed afterwards, and leave nothing running."""

    def missing(self) -> str | None:
        """Why it cannot run on this machine, such as "needs root: it mounts a file system"; None when it can."""
        return None
