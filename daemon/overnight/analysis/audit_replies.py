"""What is odd about the replies of a conversation by itself: thinking, tokens, cut and empty ones. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from overnight.analysis.audit_finding import Check, Finding, having, nothing, of, of_replies, with_replies
from overnight.analysis.audit_look import Subject


def _thinking(subjects: Sequence[Subject]) -> Iterator[Finding]:
    yield from of(
        "error",
        "no_think_thinks",
        [each for each in having(subjects, "thinking") if each.thinks is False],
        "1 no-think run thinks",
        "{} no-think runs think",
        of_replies("thinking"),
    )
    idle = [
        each
        for each in with_replies(subjects)
        if each.thinks and each.replies is not None and not each.replies.thinking
    ]
    yield from of("warning", "think_does_not", idle, "1 think run never thinks", "{} think runs never think", nothing)
    yield from of(
        "warning",
        "thinking_in_text",
        having(subjects, "marked"),
        "1 conversation has reasoning in the text of its replies, where it is compared as if it were said",
        "{} conversations have reasoning in the text of their replies, where it is compared as if it were said",
        of_replies("marked"),
    )


def _tokens(subjects: Sequence[Subject]) -> Iterator[Finding]:
    spoke = with_replies(subjects)
    zero = [each for each in spoke if each.claimed_tokens == 0]
    yield from of(
        "error",
        "tokens_zero",
        zero,
        "1 conversation has its tokens at 0",
        "{} conversations have their tokens at 0",
        lambda cell: f"0 tokens for {cell.replies.count if cell.replies else 0:,} replies",
    )
    yield from of(
        "warning",
        "tokens_missing",
        [each for each in spoke if each.claimed_tokens is None],
        "1 conversation does not say how many tokens it took",
        "{} conversations do not say how many tokens they took",
        nothing,
    )
    counted = [each for each in spoke if each.claimed_tokens]
    yield from of(
        "warning",
        "tokens_of_replies",
        [each for each in counted if each.replies and (each.replies.tokens_zero or each.replies.tokens_missing)],
        "1 conversation has replies without a token count",
        "{} conversations have replies without a token count",
        lambda cell: f"{cell.replies.tokens_zero + cell.replies.tokens_missing if cell.replies else 0:,} replies",
    )
    whole = [each for each in counted if each.replies and not each.replies.tokens_missing]
    yield from of(
        "error",
        "tokens_differ",
        [each for each in whole if each.replies and each.replies.tokens_sum != each.claimed_tokens],
        "1 conversation claims other tokens than its replies have",
        "{} conversations claim other tokens than their replies have",
        lambda cell: f"claims {cell.claimed_tokens:,}, replies {cell.replies.tokens_sum if cell.replies else 0:,}",
    )
    yield from of(
        "warning",
        "tokens_too_many",
        [each for each in having(subjects, "too_many") if each.imported],
        "1 conversation counts more tokens than its replies have characters: prompts are in that figure, too",
        "{} conversations count more tokens than their replies have characters: prompts are in these figures, too",
        of_replies("too_many"),
    )


def _cut(subjects: Sequence[Subject]) -> Iterator[Finding]:
    yield from of(
        "warning",
        "cut",
        having(subjects, "at_limit"),
        "1 conversation has replies that were cut at the token limit",
        "{} conversations have replies that were cut at the token limit",
        of_replies("at_limit"),
    )
    yield from of(
        "warning",
        "cut_thinking",
        having(subjects, "cut_thinking"),
        "1 conversation has replies that end inside their reasoning: they were cut",
        "{} conversations have replies that end inside their reasoning: they were cut",
        of_replies("cut_thinking"),
    )
    silent = [
        each for each in with_replies(subjects) if each.replies and each.replies.unexplained == each.replies.count
    ]
    yield from of(
        "note",
        "cut_unknown",
        silent,
        "1 conversation does not say why its replies ended: cut ones cannot be counted",
        "{} conversations do not say why their replies ended: cut ones cannot be counted",
        nothing,
    )


def _empty(subjects: Sequence[Subject]) -> Iterator[Finding]:
    for severity, code, name, what in (
        ("error", "empty", "empty", "empty replies"),
        ("warning", "only_reasoning", "only_reasoning", "replies that are nothing but reasoning"),
        ("warning", "echoes", "echoes", "replies that only repeat what was said to them"),
    ):
        cells = having(subjects, name)
        one, many = f"1 conversation has {what}", f"{{}} conversations have {what}"
        yield from of(severity, code, cells, one, many, of_replies(name))
    silent = [each for each in subjects if each.status == "done" and each.replies and not each.replies.count]
    yield from of(
        "error",
        "no_replies",
        silent,
        "1 cell is done without a reply",
        "{} cells are done without a reply",
        nothing,
    )


CHECKS: tuple[Check, ...] = (_thinking, _tokens, _cut, _empty)
