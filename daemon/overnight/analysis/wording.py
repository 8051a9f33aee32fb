"""What the figures of a grid can show and what they cannot, in plain sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from overnight.analysis import resampling
from overnight.analysis.groups import Gathered

if TYPE_CHECKING:
    from overnight.analysis.statistics import Comparison

_MOST_RUNS = 100
_FEW_RUNS = 10
_NAMED = 5


def sentence(comparison: Comparison, alpha: float, permutations: int) -> str:
    """Of one comparison, once it is corrected."""
    n, m = comparison.n, comparison.n_baseline
    test, smallest, best, p = comparison.test, comparison.smallest_p, comparison.best_holm, comparison.p_holm
    if test is None or smallest is None or best is None or p is None:
        return f"n = {n} against {m}: no test, which takes two runs on each side"
    if best > alpha:
        return cannot(n, m, smallest, comparison.family, alpha, permutations)
    corrected = f" after Holm's correction over {comparison.family} comparisons" if comparison.family > 1 else ""
    if not comparison.significant:
        return f"n = {n} against {m}: no difference shown (p = {short(p)}{corrected})"
    more = (comparison.difference or 0.0) > 0
    return f"n = {n} against {m}: {'more' if more else 'less'} than {comparison.baseline} (p = {short(p)}{corrected})"


def cannot(n: int, m: int, smallest: float, family: int, alpha: float, permutations: int) -> str:
    """Why no difference whatever could be significant, and what it takes."""
    told = f"n = {n} against {m}: the smallest possible two-sided p is {short(smallest)}"
    if smallest <= alpha:
        told += f", {short(min(1.0, smallest * family))} after Holm's correction over {family} comparisons"
    needed = runs_needed(family, alpha, permutations)
    takes = f"; it takes {needed} against {needed}" if needed else "; it takes more permutations"
    return f"{told}, so nothing can be significant at {short(alpha)}{takes}"


def runs_needed(family: int, alpha: float, permutations: int) -> int | None:
    """The fewest runs on each side with which the clearest of `family` comparisons could be significant; None when no
    number is enough for so few permutations."""
    for runs in range(2, _MOST_RUNS):
        smallest = resampling.smallest_p(runs, runs, permutations)
        if smallest is not None and smallest * max(1, family) <= alpha:
            return runs
    return None


def short(figure: float) -> str:
    """Three digits are more than such figures hold."""
    return f"{figure:.2g}"


def notes(
    gathered: Gathered,
    baselines: Mapping[str, str],
    comparisons: Sequence[Comparison],
    alpha: float,
    level: float,
    permutations: int,
) -> Iterator[str]:
    """What holds for all of it."""
    if gathered.left_out:
        told = ", ".join(f"{count} {status}" for status, count in sorted(gathered.left_out.items()))
        yield f"Left out since they are not done: {told}."
    yield from _wordless(gathered)
    yield from _few(gathered, level)
    yield from _repeated(gathered)
    if any(each.test is not None for each in comparisons):
        yield from _power(comparisons, alpha, permutations)
        most = max(each.family for each in comparisons)
        metrics = len({each.metric for each in comparisons})
        yield (
            f"p_holm is corrected over the comparisons of one metric in a grid (up to {most}), not over the "
            f"{metrics} metrics: up to {short(alpha * metrics)} of those would show something by chance alone."
        )
    if any("onset_turn" in runs.columns for runs in gathered.groups.values()):
        yield (
            "onset_turn is of the conversations that collapsed alone (n says how many); "
            "whether they collapse at all is `collapsed`."
        )
    yield from _without_baseline(gathered, baselines)


def _wordless(gathered: Gathered) -> Iterator[str]:
    """Only `tfidf` has such turns: an encoder reads every script."""
    for backend, turns in gathered.wordless.items():
        told = (
            f"{turns} {'turn has' if turns == 1 else 'turns have'} no words that {backend} counts (Latin letters and "
            f"digits): metrics leave {'it' if turns == 1 else 'them'} out"
        )
        if unmeasured := gathered.unmeasured[backend]:
            told += f", and {unmeasured} {'conversation has' if unmeasured == 1 else 'conversations have'} no metrics"
        yield f"{told}; use --backend embedding."


def _few(gathered: Gathered, level: float) -> Iterator[str]:
    few = [runs.count for runs in gathered.groups.values() if runs.count <= _FEW_RUNS]
    if not few:
        return
    if min(few) == 1:
        yield f"{few.count(1)} of {len(gathered.groups)} groups have one run: no spread, no interval and no test there."
    if max(few) > 1:
        least = min(count for count in few if count > 1)
        yield (
            f"Intervals of {_FEW_RUNS} runs and fewer (here from n = {least} on) are too narrow: a nominal 95 % holds "
            f"the true mean in about 70 % of cases for n = 3, 85 % for n = 5 and 90 % for n = 8, and it never leaves "
            f"the range of the runs. (Asked for: {100 * level:g} %.)"
        )


def _repeated(gathered: Gathered) -> Iterator[str]:
    repeated = [(name, runs) for name, runs in gathered.groups.items() if runs.repeated]
    for name, runs in repeated[:_NAMED]:
        yield (
            f"{name}: {runs.repeated} of {runs.count} runs {'is' if runs.repeated == 1 else 'are'} the same as another "
            "one word for word: n counts them, but they are no independent runs, and intervals and p are too good."
        )
    if len(repeated) > _NAMED:
        yield f"The same holds for {len(repeated) - _NAMED} more groups."


def _power(comparisons: Iterable[Comparison], alpha: float, permutations: int) -> Iterator[str]:
    """Once for each pair of n that is too small, the most frequent first."""
    pairs = Counter[tuple[int, int]]()
    largest: dict[tuple[int, int], tuple[float, int]] = {}
    for each in comparisons:
        if each.smallest_p is not None and each.best_holm is not None and each.best_holm > alpha:
            pair = each.n, each.n_baseline
            pairs[pair] += 1
            largest[pair] = max(largest.get(pair, (0.0, 0)), (each.smallest_p, each.family))
    for pair, _ in pairs.most_common(_NAMED):
        yield f"{cannot(*pair, *largest[pair], alpha, permutations)}."


def _without_baseline(gathered: Gathered, baselines: Mapping[str, str]) -> Iterator[str]:
    alone = [
        name
        for name in gathered.groups
        if name.scaffold != baselines[name.grid] and name.beside(baselines[name.grid]) not in gathered.groups
    ]
    for name in alone[:_NAMED]:
        yield f"{name}: not compared, no conversation of {baselines[name.grid]} that is done is beside it."
    if len(alone) > _NAMED:
        yield f"Nor are {len(alone) - _NAMED} more groups."
