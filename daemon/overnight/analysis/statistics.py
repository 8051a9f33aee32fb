"""Statistics over a grid: what each scaffold does with each model, with the runs as repeats, and how sure that is.

`analyse(records)` gives a summary of every metric for each group (scaffold x model x further axes), and compares each
group with the one that differs from it in the scaffold alone and has the baseline's. It is plain about small numbers:
with 3 runs against 3 the smallest possible p is 0.1, so nothing can be significant, and every comparison says so.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from overnight.analysis import resampling, wording
from overnight.analysis.groups import Gathered, Name, Record, Runs, gather
from overnight.analysis.resampling import Interval, Rows, Test
from overnight.errors import UserError

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Settings:
    """level: of the intervals; alpha: what counts as significant; resamples: of each bootstrap; permutations: so many
    random ones where there are more than that. The same seed gives the same figures."""

    seed: int = 0
    level: float = 0.95
    alpha: float = 0.05
    resamples: int = 9999
    permutations: int = 9999


@dataclass(frozen=True, slots=True)
class Summary:
    """One metric of one group. n: runs that have it; missing: those that do not. sd: with n - 1; None for one run."""

    metric: str
    n: int
    missing: int
    mean: float | None
    sd: float | None
    median: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Group:
    """n: its conversations; repeated: how many of them say the very same as another one."""

    name: Name
    n: int
    repeated: int
    summaries: tuple[Summary, ...]

    def summary(self, metric: str) -> Summary:
        """Raises KeyError for a metric that no conversation of the grid has."""
        for summary in self.summaries:
            if summary.metric == metric:
                return summary
        raise KeyError(metric)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of a group against the baseline's. difference: of the means, in the metric's unit, with its interval.

    test: None where either side has fewer than two runs. smallest_p: what p could be at best; p_holm: corrected over
    the `family` of comparisons of this metric in this grid; best_holm: what p_holm could be at best;
    sentence: all that in words."""

    name: Name
    baseline: str
    metric: str
    n: int
    n_baseline: int
    difference: float | None
    interval: Interval | None
    cliffs_delta: float | None
    hedges_g: float | None
    test: Test | None
    smallest_p: float | None
    p_holm: float | None = None
    best_holm: float | None = None
    family: int = 0
    significant: bool = False
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Statistics:
    """baselines: grid -> scaffold. analyses: grid -> backend, method and their parameters. notes: what a reader has to
    know before believing a figure, one sentence each. left_out: status -> conversations."""

    settings: Settings
    analyses: dict[str, dict[str, Any]]
    metrics: tuple[str, ...]
    baselines: dict[str, str]
    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of_metric(self, metric: str) -> Iterator[Comparison]:
        return (comparison for comparison in self.comparisons if comparison.metric == metric)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def analyse(
    records: Iterable[Record],
    *,
    baseline: str | None = None,
    statuses: Collection[str] = ("done",),
    settings: Settings | None = None,
) -> Statistics:
    """baseline: the scaffold to compare with; by default the one called `baseline`, else each grid's first.

    Raises UserError when no conversation has that scaffold, and for a grid with records of several analyses."""
    chosen = settings or Settings()
    gathered = gather(records, statuses)
    baselines = _baselines(gathered, baseline)
    metrics = gathered.metrics
    groups = tuple(_group(name, runs, metrics, chosen) for name, runs in gathered.groups.items())
    compared = [
        comparison
        for name in gathered.groups
        if name.scaffold != baselines[name.grid] and name.beside(baselines[name.grid]) in gathered.groups
        for comparison in _compare(gathered, name, baselines[name.grid], metrics, chosen)
    ]
    comparisons = tuple(_corrected(compared, metrics, chosen))
    return Statistics(
        chosen,
        gathered.analyses,
        tuple(metrics),
        baselines,
        groups,
        comparisons,
        dict(gathered.left_out),
        tuple(wording.notes(gathered, baselines, comparisons, chosen.alpha, chosen.level, chosen.permutations)),
    )


def _baselines(gathered: Gathered, wanted: str | None) -> dict[str, str]:
    scaffolds: dict[str, dict[str, None]] = {}
    for name in gathered.groups:
        scaffolds.setdefault(name.grid, {})[name.scaffold] = None
    if wanted is not None and scaffolds and not any(wanted in known for known in scaffolds.values()):
        every = list(dict.fromkeys(each for known in scaffolds.values() for each in known))
        near = difflib.get_close_matches(wanted, every, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(every)}"
        raise UserError(f"baseline {wanted!r}: no conversation that is done has this scaffold; {hint}")
    asked = BASELINE if wanted is None else wanted
    return {grid: asked if asked in known else next(iter(known)) for grid, known in scaffolds.items()}


def _group(name: Name, runs: Runs, metrics: Sequence[str], settings: Settings) -> Group:
    found: dict[str, Summary] = {}
    for several, rows in _full(runs, metrics):
        n = rows.shape[1]
        intervals = resampling.mean_intervals(
            rows,
            resampling.generator(settings.seed, "mean", name),
            level=settings.level,
            resamples=settings.resamples,
        )
        for metric, row, interval in zip(several, rows, intervals, strict=True):
            mean, median = (float(np.mean(row)), float(np.median(row))) if n else (None, None)
            sd = float(np.std(row, ddof=1)) if n > 1 else None
            found[metric] = Summary(metric, n, runs.count - n, mean, sd, median, interval)
    return Group(name, runs.count, runs.repeated, tuple(found[metric] for metric in metrics))


def _full(runs: Runs, metrics: Sequence[str]) -> Iterator[tuple[list[str], Rows]]:
    """The metrics that the same runs have, together: their names, and their values without gaps."""
    together: dict[bytes, list[str]] = {}
    has: dict[bytes, Any] = {}
    for metric in metrics:
        there = ~np.isnan(_column(runs, metric))
        together.setdefault(there.tobytes(), []).append(metric)
        has[there.tobytes()] = there
    for pattern, several in together.items():
        yield several, np.stack([_column(runs, metric)[has[pattern]] for metric in several])


def _column(runs: Runs, metric: str) -> Any:
    column = runs.columns.get(metric)
    return np.full(runs.count, np.nan) if column is None else np.frombuffer(column, dtype=np.float64)


def _compare(
    gathered: Gathered, name: Name, baseline: str, metrics: Sequence[str], settings: Settings
) -> Iterator[Comparison]:
    runs, base = gathered.groups[name], gathered.groups[name.beside(baseline)]
    of_base = {metric: (pattern, row) for pattern, (several, rows) in enumerate(_full(base, metrics))
               for metric, row in zip(several, rows, strict=True)}  # fmt: skip
    for several, rows in _full(runs, metrics):
        for pattern in sorted({of_base[metric][0] for metric in several}):
            shared = [i for i, metric in enumerate(several) if of_base[metric][0] == pattern]
            others = np.stack([of_base[several[i]][1] for i in shared])
            yield from _tested([several[i] for i in shared], rows[shared], others, name, baseline, settings)


def _tested(
    metrics: Sequence[str], rows: Rows, others: Rows, name: Name, baseline: str, settings: Settings
) -> Iterator[Comparison]:
    n, m = rows.shape[1], others.shape[1]
    intervals = resampling.difference_intervals(
        rows,
        others,
        resampling.generator(settings.seed, "difference", name, baseline),
        level=settings.level,
        resamples=settings.resamples,
    )
    tests = resampling.permutation_tests(
        rows,
        others,
        resampling.generator(settings.seed, "permutation", name, baseline),
        permutations=settings.permutations,
    )
    for metric, row, other, interval, test in zip(metrics, rows, others, intervals, tests, strict=True):
        both = n > 0 and m > 0
        yield Comparison(
            name,
            baseline,
            metric,
            n,
            m,
            float(np.mean(row) - np.mean(other)) if both else None,
            interval,
            (0.0 if resampling.all_the_same(row, other) else resampling.cliffs_delta(row, other)) if both else None,
            resampling.hedges_g(row, other),
            test,
            resampling.smallest_p(n, m, settings.permutations),
        )


def _corrected(compared: Sequence[Comparison], metrics: Sequence[str], settings: Settings) -> Iterator[Comparison]:
    """By metric, with Holm's correction over all comparisons of that metric in a grid, and what it could have been at
    best. (Not over several grids: a figure must not hang on what else is looked at.)"""
    grids = dict.fromkeys(comparison.name.grid for comparison in compared)
    of: dict[tuple[str, str], list[Comparison]] = {(grid, metric): [] for grid in grids for metric in metrics}
    for comparison in compared:
        of[comparison.name.grid, comparison.metric].append(comparison)
    for family in of.values():
        corrected = resampling.holm([None if each.test is None else each.test.p for each in family])
        best = resampling.holm([each.smallest_p for each in family])
        tested = sum(each.test is not None for each in family)
        for comparison, p, least in zip(family, corrected, best, strict=True):
            whole = dataclasses.replace(
                comparison,
                p_holm=p,
                best_holm=least,
                family=tested,
                significant=p is not None and p <= settings.alpha,
            )
            yield dataclasses.replace(whole, sentence=wording.sentence(whole, settings.alpha, settings.permutations))
