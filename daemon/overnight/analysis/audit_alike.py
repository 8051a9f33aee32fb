"""Conversations against each other: what should differ and does not, what should not and does. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from overnight.analysis.audit_finding import Check, Finding, having, listed, of, with_replies
from overnight.analysis.audit_look import Subject, common_messages, common_replies, groups
from overnight.queue.specs import first_difference

_MOST_PAIRS = 2_000
"""Conversations that are compared two by two, at most: those that begin with the same reply."""
_BEGINNING = 3
"""Replies in common, from which on one conversation counts as the beginning of another."""


def _identical(subjects: Sequence[Subject]) -> Iterator[Finding]:
    same: dict[bytes, list[Subject]] = {}
    for each in with_replies(subjects):
        assert each.replies is not None  # noqa: S101 - see with_replies
        same.setdefault(each.replies.whole, []).append(each)
    for alike in same.values():
        if len(alike) > 1:
            count = alike[0].replies.count if alike[0].replies else 0
            across = "runs" if len({repr(each.group) for each in alike}) == 1 else "cells of different settings"
            why = " (temperature 0: runs repeat each other)" if all(each.greedy for each in alike) else ""
            yield Finding(
                "error",
                "identical",
                f"{len(alike):,} {across} have the same conversation, word for word{why}",
                f"{listed((each.key for each in alike), len(alike))}: all {count:,} replies; they count as one",
                tuple(each.key for each in alike),
            )
    yield from _beginnings([alike[0] for alike in same.values()])


def _beginnings(subjects: Sequence[Subject]) -> Iterator[Finding]:
    first: dict[bytes, list[Subject]] = {}
    for each in subjects:
        first.setdefault(each.replies.digests[:8] if each.replies else b"", []).append(each)
    pairs = 0
    for alike in first.values():
        for at, one in enumerate(alike):
            for other in alike[at + 1 :]:
                if (pairs := pairs + 1) > _MOST_PAIRS or one.replies is None or other.replies is None:
                    return
                short, long = sorted((one, other), key=lambda each: each.replies.count if each.replies else 0)
                count = common_replies(one.replies, other.replies)
                if count >= _BEGINNING and short.replies is not None and count == short.replies.count:
                    title = "a conversation is the beginning of another, word for word"
                    detail = f"{short.key} is all in {long.key}: its {count:,} replies"
                    yield Finding("error", "beginning", title, detail, (short.key, long.key))


def _settings(subjects: Sequence[Subject]) -> Iterator[Finding]:
    for alike in groups(with_replies(subjects)).values():
        reference = alike[0]
        unlike = {each.key: told for each in alike[1:] if (told := _unlike(reference, each))}
        if unlike:
            name = "/".join([reference.scaffold, reference.model, *(f"{k}={v}" for k, v in reference.axes.items())])
            details = listed((f"{key} ({told})" for key, told in unlike.items()), len(unlike))
            yield Finding(
                "error",
                "settings_differ",
                f"runs of {name} have differing settings",
                f"against {reference.key}: {details}",
                (reference.key, *unlike),
            )
    yield from of(
        "warning",
        "conditions_changed",
        having(subjects, "changed"),
        "1 conversation went on under other conditions than it began with",
        "{} conversations went on under other conditions than they began with",
        lambda cell: f"from turn {cell.replies.changed[0] if cell.replies else 0:,} on",
    )
    yield from of(
        "note",
        "stopped_early",
        [each for each in with_replies(subjects) if each.collapsed],
        "1 conversation may have been ended for the collapse that the older harness saw in it: lengths do not compare",
        "{} conversations may have been ended for the collapse that the older harness saw: lengths do not compare",
        lambda cell: f"{cell.replies.count if cell.replies else 0:,} replies",
    )


def _unlike(one: Subject, other: Subject) -> str:
    """The first setting in which two runs differ, "" for none."""
    if told := first_difference(dict(one.settings), dict(other.settings)):
        return told
    assert one.replies is not None and other.replies is not None  # noqa: S101 - see with_replies
    most = min(one.replies.count, other.replies.count)
    if one.imported and (count := common_messages(one.replies, other.replies)) < most:
        return f"the user's side says something else before turn {count + 1}"
    return ""


CHECKS: tuple[Check, ...] = (_identical, _settings)
