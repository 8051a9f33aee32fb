"""Statistics over a grid: what is compared with what, what is left out, and what is said about how sure it is."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.analysis_records import of_metric, record
from overnight.analysis import metrics, wording
from overnight.analysis.groups import Name, gather
from overnight.analysis.statistics import Settings, Statistics, analyse
from overnight.analysis.tfidf import Tfidf
from overnight.errors import UserError

QUICK = Settings(resamples=499, permutations=999)


def of(values: dict[tuple[str, str], list[float | None]], **how: object) -> Statistics:
    return analyse(of_metric(values), settings=QUICK, **how)  # type: ignore[arg-type]


def test_known_numbers() -> None:
    found = of({("baseline", "small"): [1.0, 2.0, 6.0], ("values", "small"): [7.0, 8.0, 9.0]})
    base = found.groups[0].summary("m")
    assert (base.n, base.missing, base.mean, base.median) == (3, 0, 3.0, 2.0)
    assert base.sd == pytest.approx(math.sqrt(7))
    assert base.interval is not None and base.interval.low < 3.0 < base.interval.high
    (comparison,) = found.of_metric("m")
    assert comparison.name == Name("night", "values", "small")
    assert (comparison.baseline, comparison.n, comparison.n_baseline) == ("baseline", 3, 3)
    assert (comparison.difference, comparison.cliffs_delta) == (5.0, 1.0)
    assert comparison.test is not None and (comparison.test.p, comparison.test.exact) == (pytest.approx(0.1), True)
    with pytest.raises(KeyError):
        found.groups[0].summary("n")


def test_three_against_three_is_told_plainly() -> None:
    found = of({("baseline", "small"): [1.0, 2.0, 3.0], ("values", "small"): [1e6, 2e6, 3e6]})
    (comparison,) = found.of_metric("m")
    assert not comparison.significant
    assert comparison.sentence == (
        "n = 3 against 3: the smallest possible two-sided p is 0.1, so nothing can be significant at 0.05; "
        "it takes 4 against 4"
    )
    assert f"{comparison.sentence}." in found.notes
    assert any(
        note.startswith("Intervals of 10 runs and fewer (here from n = 3 on) are too narrow") for note in found.notes
    )


def test_correction_can_make_what_was_possible_impossible() -> None:
    values = {(scaffold, "small"): [float(i) for i in range(4)] for scaffold in ("baseline", "a", "b")}
    (one, two) = of(values).of_metric("m")
    assert one.smallest_p == pytest.approx(2 / 70)
    assert (one.family, one.best_holm) == (2, pytest.approx(4 / 70))
    assert (
        one.sentence
        == two.sentence
        == (
            "n = 4 against 4: the smallest possible two-sided p is 0.029, 0.057 after Holm's correction over "
            "2 comparisons, so nothing can be significant at 0.05; it takes 5 against 5"
        )
    )


@settings(deadline=None)
@given(st.integers(1, 60), st.sampled_from([0.05, 0.01]))
def test_the_runs_that_it_takes_are_enough_and_no_fewer_are(family: int, alpha: float) -> None:
    needed = wording.runs_needed(family, alpha, 10**6)
    assert needed is not None
    assert 2 / math.comb(2 * needed, needed) * family <= alpha
    assert 2 / math.comb(2 * needed - 2, needed - 1) * family > alpha


def test_too_few_permutations_are_told() -> None:
    assert wording.runs_needed(10, 0.05, 99) is None
    assert "it takes more permutations" in wording.cannot(20, 20, 2 / 100, 10, 0.05, 99)


def test_enough_runs_can_be_significant() -> None:
    rng = np.random.default_rng(0)
    found = of({
        ("baseline", "small"): list(rng.normal(0, 1, 9)),
        ("values", "small"): list(rng.normal(6, 1, 9)),
        ("other", "small"): list(rng.normal(0, 1, 9)),
    })  # fmt: skip
    values, other = found.of_metric("m")
    assert values.significant and not other.significant
    assert values.sentence == (
        "n = 9 against 9: more than baseline (p = 0.004 after Holm's correction over 2 comparisons)"
    )
    assert "no difference shown (p = " in other.sentence


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 3), (3, 1)])
def test_one_run_gets_its_figures_but_no_test(n: int, m: int) -> None:
    found = of({("baseline", "small"): [1.0, 2.0, 3.0][:m], ("values", "small"): [4.0, 5.0, 6.0][:n]})
    (comparison,) = found.of_metric("m")
    assert comparison.difference is not None
    assert (comparison.test, comparison.interval, comparison.p_holm, comparison.hedges_g) == (None,) * 4
    assert comparison.sentence == f"n = {n} against {m}: no test, which takes two runs on each side"
    assert any("have one run: no spread, no interval and no test" in note for note in found.notes)
    single = found.groups[0 if m == 1 else 1].summary("m")
    assert (single.n, single.sd, single.interval) == (1, None, None)


def test_two_runs() -> None:
    found = of({("baseline", "small"): [1.0, 2.0], ("values", "small"): [5.0, 6.0]})
    (comparison,) = found.of_metric("m")
    assert comparison.test is not None and comparison.test.p == pytest.approx(1 / 3)
    interval = found.groups[0].summary("m").interval
    assert interval is not None and (interval.low, interval.high) == (1.0, 2.0)


def test_constant_runs() -> None:
    found = of({("baseline", "small"): [0.5] * 3, ("values", "small"): [0.5] * 3, ("other", "small"): [0.7] * 3})
    same, other = found.of_metric("m")
    assert same.test is not None and (same.difference, same.cliffs_delta, same.test.p) == (0.0, 0.0, 1.0)
    assert other.test is not None and other.test.p == pytest.approx(0.1)
    assert (same.hedges_g, other.hedges_g) == (None, None)
    assert other.interval is not None and other.interval.method == "percentile"


def test_conversations_that_differ_in_rounding_alone_differ_in_nothing() -> None:
    """Every run says one thing again and again, each another one: no metric but the onset's may tell them apart."""
    said = [" ".join(f"word{n}x{i}" for i in range(n + 3)) for n in range(10)]
    found = [metrics.conversation_metrics(Tfidf().vectors([text] * (9 + at))) for at, text in enumerate(said)]
    one, other = (
        [record(scaffold, run=run, metrics={**each, "vendi_score_normalized": 0.1, "vendi_score_normalized_trim": 0.1})
         for run, each in enumerate(half)]
        for scaffold, half in (("baseline", found[:5]), ("values", found[5:]))
    )  # fmt: skip
    compared = [each for each in analyse([*one, *other], settings=QUICK).comparisons if each.metric in found[0]]
    assert len(compared) == len(found[0])
    for each in compared:
        assert each.test is not None and (each.test.p, each.cliffs_delta, each.hedges_g) == (1.0, 0.0, None), (
            each.metric
        )


def test_no_records_are_no_error() -> None:
    found = analyse([])
    assert (found.groups, found.comparisons, found.notes, found.analyses) == ((), (), (), {})
    assert analyse([], baseline="values").groups == ()


# -- what is compared with what ---------------------------------------------------------------------------------------


def test_only_the_scaffold_differs() -> None:
    records = [
        record(scaffold, model, coords={"scaffold": scaffold, "model": model, "run": 1, "heat": heat})
        for scaffold in ("values", "baseline")
        for model in ("small", "large")
        for heat in (0.5, 1.0)
    ]
    found = analyse(records, settings=QUICK)
    assert len(found.groups) == 8
    assert found.groups[0].name == Name("night", "values", "small", (("heat", 0.5),))
    compared = [(each.name, each.baseline) for each in found.of_metric("collapsed_fraction")]
    assert [name.scaffold for name, _ in compared] == ["values"] * 4
    assert [(name.model, name.axes) for name, _ in compared] == [
        (model, (("heat", heat),)) for model in ("small", "large") for heat in (0.5, 1.0)
    ]


def test_the_baseline_is_the_one_of_that_name_or_the_grids_first_or_chosen() -> None:
    assert of({("values", "s"): [1.0], ("baseline", "s"): [1.0]}).baselines == {"night": "baseline"}
    assert of({("values", "s"): [1.0], ("other", "s"): [1.0]}).baselines == {"night": "values"}
    assert of({("values", "s"): [1.0], ("other", "s"): [1.0]}, baseline="other").baselines == {"night": "other"}
    with pytest.raises(UserError, match=r"baseline 'valuse': no conversation .* did you mean 'values'"):
        of({("values", "s"): [1.0]}, baseline="valuse")


def test_grids_are_not_thrown_together() -> None:
    found = analyse(
        [record("baseline"), record("values"), record("baseline", grid="old"), record("values", grid="old")]
    )
    assert [each.name.grid for each in found.of_metric("collapsed")] == ["night", "old"]
    assert {each.n for each in found.of_metric("collapsed")} == {1}
    assert found.comparisons[0].family == 0


def test_a_figure_does_not_hang_on_what_else_is_looked_at() -> None:
    values = {(s, "small"): [float(i) for i in range(6)] for s in ("baseline", "a", "b")}
    night, old = list(of_metric(values)), [{**each, "grid": "old", "method": "profile"} for each in of_metric(values)]
    both, alone = (analyse(records, settings=QUICK) for records in ([*night, *old], night))
    assert [each for each in both.comparisons if each.name.grid == "night"] == list(alone.comparisons)
    assert [both.analyses[grid]["method"] for grid in ("night", "old")] == ["absolute", "profile"]


def test_a_model_without_the_baseline_is_told() -> None:
    found = of({("baseline", "small"): [1.0], ("values", "small"): [1.0], ("values", "large"): [1.0]})
    assert [each.name.model for each in found.of_metric("m")] == ["small"]
    assert "night values large: not compared, no conversation of baseline that is done is beside it." in found.notes


# -- what is left out -------------------------------------------------------------------------------------------------


def test_what_is_not_done_is_left_out_and_counted() -> None:
    records = [record(run=1), record(run=2, status="failed"), record(run=3, status="pending")]
    found = analyse(records, settings=QUICK)
    assert found.groups[0].n == 1
    assert found.left_out == {"failed": 1, "pending": 1}
    assert found.notes[0] == "Left out since they are not done: 1 failed, 1 pending."
    assert analyse(records, statuses=("done", "failed"), settings=QUICK).groups[0].n == 2


def test_missing_values_are_counted_and_no_zeros() -> None:
    records = [
        record(run=1, fraction=0.5),
        record(run=2),
        record(run=3, fraction=0.3),
        record(run=4, tokens_known=False),
    ]
    group = analyse(records, settings=QUICK).groups[0]
    assert [(s.n, s.missing, s.mean) for s in (group.summary("onset_turn"), group.summary("collapsed"))] == [
        (2, 2, 4.0),
        (4, 0, 0.5),
    ]
    assert (group.summary("tokens").n, group.summary("collapsed_fraction").mean) == (3, pytest.approx(0.2))


def test_where_nothing_was_said_nothing_is_known_of_a_collapse() -> None:
    group = analyse([record(run=1), record(run=2, turns=0, metrics={}, series=[])], settings=QUICK).groups[0]
    for metric in ("collapsed", "collapsed_fraction", "collapse_rate"):
        assert (group.summary(metric).n, group.summary(metric).missing) == (1, 1)
    assert group.summary("turns").n == 2


def test_turns_without_words_are_told() -> None:
    records = [record(run=1, wordless_turns=2), record(run=2, wordless_turns=10, metrics={}), record(run=3)]
    assert analyse(records, settings=QUICK).notes[0] == (
        "12 turns have no words that tfidf counts (Latin letters and digits): metrics leave them out, and "
        "1 conversation has no metrics; use --backend embedding."
    )
    (told,) = (note for note in analyse([record(wordless_turns=1)]).notes if "words" in note)
    assert told.startswith("1 turn has no words") and told.endswith("leave it out; use --backend embedding.")
    assert not any("words" in note for note in analyse([record()]).notes)


@pytest.mark.parametrize("odd", [None, math.nan, math.inf, "many", True])
def test_what_is_no_finite_number_is_missing(odd: object) -> None:
    records = [record(run=1, metrics={"m": 1.0}), record(run=2, metrics={"m": odd}), record(run=3, metrics={})]
    summary = analyse(records, settings=QUICK).groups[0].summary("m")
    assert (summary.n, summary.missing, summary.mean, summary.sd) == (1, 2, 1.0, None)


def test_a_metric_that_one_group_never_has() -> None:
    found = of({("baseline", "small"): [1.0, 2.0], ("values", "small"): [None, None]})
    (comparison,) = found.of_metric("m")
    assert (comparison.n, comparison.n_baseline, comparison.difference, comparison.test) == (0, 2, None, None)
    assert found.groups[1].summary("m").mean is None


def test_records_of_two_analyses_are_refused() -> None:
    with pytest.raises(UserError, match="analysed with method profile, others with absolute"):
        analyse([record(run=1), record(run=2, method="profile")])
    with pytest.raises(UserError, match="parameters"):
        analyse([record(run=1), record(run=2, parameters={"window": 7})])


def test_the_same_conversation_twice_is_told() -> None:
    again = {**record(run=1), "run": 2, "key": "baseline_small_run2"}
    found = analyse([record(run=1), again, record(run=3)], settings=QUICK)
    assert (found.groups[0].n, found.groups[0].repeated) == (3, 1)
    assert any("1 of 3 runs is the same as another one word for word" in note for note in found.notes)
    alike = [record(run=1), {**record(run=1), "run": 2, "texts_sha256": "f" * 64}]
    assert analyse(alike, settings=QUICK).groups[0].repeated == 0, "equal figures are no equal words"
    empty = [record(run=n, turns=0, metrics={}, series=[]) for n in (1, 2)]
    assert analyse(empty, settings=QUICK).groups[0].repeated == 0


# -- the whole --------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_and_one_more_group_changes_no_other() -> None:
    rng = np.random.default_rng(1)
    values = {(s, m): list(rng.normal(size=9)) for s in ("baseline", "values") for m in ("small", "large")}
    found, fewer = of(values), of({key: runs for key, runs in values.items() if key[1] == "small"})
    assert found == of(values)
    assert found.groups[0] == fewer.groups[0]
    one, other = (next(each.of_metric("m")) for each in (found, fewer))
    assert (one.interval, one.test) == (other.interval, other.test)
    changed = analyse(of_metric(values), settings=Settings(seed=1, resamples=499, permutations=999))
    assert changed.groups[0] != found.groups[0]


def test_holm_is_over_the_comparisons_of_one_metric() -> None:
    values = {(s, m): [float(i) for i in range(6)] for s in ("baseline", "a", "b") for m in ("small", "large")}
    found = of(values)
    assert {each.family for each in found.of_metric("m")} == {4}
    assert {each.family for each in found.of_metric("onset_turn")} == {0}
    assert any(
        "corrected over the comparisons of one metric in a grid (up to 4), not over the" in note for note in found.notes
    )


def test_nothing_but_numbers_is_kept_of_a_record() -> None:
    """A night of long conversations must fit into memory: records are read one at a time."""
    gathered = gather(record(run=n, label="x" * 1000) for n in range(50))
    (runs,) = gathered.groups.values()
    assert {len(column) for column in runs.columns.values()} == {50}
    assert gathered.metrics[:4] == ["collapsed", "collapsed_fraction", "collapse_rate", "onset_turn"]


def test_it_is_json() -> None:
    found = of({("baseline", "small"): [1.0, 2.0, 3.0], ("values", "small"): [None, 5.0, 6.0]}).as_json()
    assert json.loads(json.dumps(found, allow_nan=False))["groups"][0]["name"]["scaffold"] == "baseline"


def test_many_values_are_plain() -> None:
    for figure, said in ((0.1, "0.1"), (0.0285714, "0.029"), (0.0002, "0.0002"), (1.0, "1")):
        assert wording.short(figure) == said
