"""Reports as a table, for the terminal and for docs/guarantees.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADINGS = ("campaign", "what is tried", "promises", "rounds", "counted", "measured", "broken promises", "seed")


def markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *(_row(one) for one in summaries)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def lines(one: Mapping[str, Any]) -> list[str]:
    """One campaign for the terminal: what came out, then each broken promise."""
    name, tries, proves, rounds, counted, measured, broken, seed = _row(one)
    head = f"{name.strip('`')}: {tries} (seed {seed}, promises {proves})"
    said = [
        head,
        f"  {rounds} rounds; {counted}",
        *([f"  {measured}"] if measured else []),
        f"  broken promises: {broken}",
    ]
    return said + [f"    {sentence}" for sentence in one["violations"]]


_MOST_SHOWN = 8


def _counted(counts: Mapping[str, int]) -> str:
    """The totals first (a part of one is called "of ..."), the larger ones before the smaller."""
    ordered = sorted(counts.items(), key=lambda each: (each[0].startswith("of "), -each[1], each[0]))
    shown = ", ".join(f"{times:,} {what}" for what, times in ordered[:_MOST_SHOWN])
    more = len(ordered) - _MOST_SHOWN
    return shown + (f", and {more} other counts" if more > 0 else "")


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    rounds = str(one["finished_rounds"])
    if one["finished_rounds"] != one["planned_rounds"]:
        rounds += f" of {one['planned_rounds']}"
    counted = _counted(one["counts"])
    measured = [
        f"{what}: p50 {each['p50']:.3g} s, p99 {each['p99']:.3g} s, most {each['most']:.3g} s"
        for what, each in one["seconds"].items()
        if each["n"]
    ]
    measured += [f"{what}: {value:,.4g}" for what, value in one["figures"].items()]
    return (
        f"`{one['campaign']}`",
        one["tries"],
        ", ".join(one["proves"]),
        rounds,
        counted,
        "; ".join(measured),
        str(len(one["violations"])),
        str(one["seed"]),
    )


BEGIN, END = "<!-- campaigns: begin (made by `make prove`) -->\n", "<!-- campaigns: end -->"


def placed(page: str, summaries: Sequence[Mapping[str, Any]]) -> str:
    """The page with this table between its two marks. Raises ValueError when they are not there."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + markdown(summaries) + END + rest.split(END)[1]
