"""Both engines on one reader, so many times, from a seed."""

from __future__ import annotations

import base64
import random
import re
import resource
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase

from fuzz import documents
from fuzz.guard import Outcome, execute
from fuzz.mutate import Mutator
from fuzz.target import Case, Target

_MOST_COMPLAINTS = 5
_MOST_CORPUS = 400
_SHOWN_CHARACTERS = 700
_VARYING = re.compile(r"\d+|'[^']*'|\"[^\"]*\"|0x[0-9a-f]+")


@dataclass
class Tally:
    """What so many executions gave. complaints: place of the complaint -> the first of its kind, with its input."""

    executions: int = 0
    taken: int = 0
    complaints: dict[str, str] = field(default_factory=dict)
    slowest_s: float = 0.0
    grown_bytes: int = 0


Note = Callable[[Case], None]
"""Keeps the input, for whoever finds the process hanging or dead."""


def shoot(target: Target, seed: int, byte_level: int, structural: int, note: Note = lambda case: None) -> Tally:
    tally = Tally()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (*target.seeds(), b"", b"\0", b"\n"):
        _one(target, Case(data), tally, note)
    _bytes(target, seed, byte_level, tally, note)
    _documents(target, seed, structural, tally, note)
    tally.grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) * 1024
    return tally


def _one(target: Target, case: Case, tally: Tally, note: Note) -> Outcome:
    note(case)
    began_s = time.process_time()
    outcome = execute(target, case)
    tally.slowest_s = max(tally.slowest_s, time.process_time() - began_s)
    tally.executions += 1
    tally.taken += outcome.shape.startswith("=")
    if outcome.complaint is not None and len(tally.complaints) < _MOST_COMPLAINTS:
        tally.complaints.setdefault(_VARYING.sub("_", outcome.complaint)[:200], told(target, case, outcome.complaint))
    return outcome


def told(target: Target, case: Case, complaint: str) -> str:
    """With what is needed to see it again: the input, made small."""
    packed = base64.b85encode(zlib.compress(case.data, 9)).decode()
    shown = packed if len(packed) <= _SHOWN_CHARACTERS else f"{packed[:_SHOWN_CHARACTERS]}... of {len(case.data)} bytes"
    return f"{target.name}: {complaint}; {'crafted ' if case.crafted else ''}input (zlib, base85) {shown}"


def _bytes(target: Target, seed: int, times: int, tally: Tally, note: Note) -> None:
    """Mutated seeds. What brings an answer of a new shape is mutated further: a poor man's coverage."""
    rng = random.Random(f"{seed}:{target.name}")
    mutator = Mutator(rng, target.tokens)
    seeds = list(target.seeds())
    corpus, shapes = list(seeds), set[str]()
    for _ in range(times):
        case = Case(mutator.mutate(rng.choice(corpus if rng.random() < 0.5 else seeds), corpus))
        shape = _VARYING.sub("_", _one(target, case, tally, note).shape)[:80]
        if shape not in shapes and len(corpus) < _MOST_CORPUS and len(case.data) < 65536:
            shapes.add(shape)
            corpus.append(case.data)


def _documents(target: Target, seed: int, times: int, tally: Tally, note: Note) -> None:
    known = list(target.documents())
    if not known or not times:
        return

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=times,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(documents.edits())
    def each(drawn: tuple[int, list[Any]]) -> None:
        case = Case(target.render(documents.edited(known, drawn)), crafted=True)
        _one(target, case, tally, note)

    each()
