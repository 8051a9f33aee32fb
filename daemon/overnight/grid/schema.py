"""What a grid file of idle loops may hold, as pydantic models. Grids of commands are in `command_schema.py`.

    Grid
     |- models: Model, with Sampling and the options of its engine
     |- scaffolds: Scaffold (a built-in one by number or name, or one of one's own)
     |- axes: Axes
     |- limits: Limits
     |- analysis: Analysis

Every field has a description that completes "expected ..."; `explain.py` makes the messages from them.
Validation is strict: "3" is no number, true is no number, an unknown key is an error.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_serializer, model_validator

from overnight.grid import after_each, keys
from overnight.grid.fields import (
    MOST_CELLS,
    MOST_RUNS,
    Day,
    Iterations,
    Memory,
    Name,
    RepeatingTurns,
    Runs,
    Section,
    Seed,
    ShiftHours,
    Source,
    TargetTokens,
    Temperature,
    Threads,
    Timeout,
    TokenLimit,
    TopK,
    TopP,
    Tries,
    Values,
    refusal,
)
from overnight.grid.nearest import did_you_mean, one_of, quoted
from overnight.grid.options import OPTIONS
from overnight.grid.scaffolds import BUILT_IN, BY_ID, BY_NAME

LARGEST_SCAFFOLD_BYTES = 32 * 1024

_SCAFFOLD_SAID = "a built-in scaffold (1 to 9, or its name) or {id: 10, name: ..., text: ...}"


class Sampling(Section):
    """How replies are sampled. temperature 0: greedy; top_p 1 and top_k 0: off."""

    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0


class Limits(Section):
    """What ends a reply, a cell, an attempt. timeout: seconds of one attempt; all others are the transcript's.

    stop_early: a cell ends when so many of its turns have repeated what was said before."""

    max_iterations: Iterations = 50
    target_output_tokens: TargetTokens = 6000
    token_limit: TokenLimit = 2000
    shift_hours: ShiftHours = 10.0
    stop_early: RepeatingTurns = None
    timeout: Timeout = None


class Axes(Section):
    """Extra axes: lists of values that take the place of one setting of `sampling` or `limits`.

    Their order in keys is the order here, whatever it is in the file: writing them in another order changes no cell.
    """

    temperature: Values[Temperature] = Field(default_factory=list)
    top_p: Values[TopP] = Field(default_factory=list)
    top_k: Values[TopK] = Field(default_factory=list)
    max_iterations: Values[Iterations] = Field(default_factory=list)
    target_output_tokens: Values[TargetTokens] = Field(default_factory=list)
    token_limit: Values[TokenLimit] = Field(default_factory=list)
    shift_hours: Values[ShiftHours] = Field(default_factory=list)
    stop_early: Values[RepeatingTurns] = Field(default_factory=list)

    def given(self) -> dict[str, list[keys.AxisValue]]:
        """The axes that the file has, with their values."""
        return {name: list(values) for name in type(self).model_fields if (values := getattr(self, name))}

    @model_serializer
    def _only_given(self) -> dict[str, Any]:
        return self.given()


class Model(Section):
    """One model of a grid. `options` holds what the file gives, checked and normalised, and no defaults: an option
    that an engine learns later must not change the specification of old cells."""

    name: Name
    engine: Annotated[Literal["transformers", "scripted"], Field(description="one of transformers, scripted")]
    source: Source
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], Field(description="one of float32, bfloat16, float16")
    ] = "float32"
    device: Annotated[Literal["cpu", "cuda", "auto"], Field(description="one of cpu, cuda, auto")] = "cpu"
    threads: Threads = 1
    thinking: Annotated[bool | None, Field(description="true, false, or null for the template's own way")] = None
    sampling: Annotated[Sampling, Field(description="a mapping of sampling settings")] = Sampling()
    options: Annotated[dict[str, Any], Field(description="a mapping of the engine's options")] = Field(
        default_factory=dict
    )

    @model_validator(mode="before")
    @classmethod
    def _scripted_needs_no_source(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("engine") == "scripted":
            return {"source": "scripted", **value}
        return value

    @field_validator("options")
    @classmethod
    def _options_of_the_engine(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        engine = info.data.get("engine")
        if engine is None:
            return value  # the engine's own error is reported
        return OPTIONS[engine].model_validate(value).model_dump(exclude_unset=True)


class Scaffold(Section):
    """A scaffold: a built-in one, named by its number or its name, or one of one's own with id, name and text."""

    id: Annotated[int, Field(ge=1, le=1_000_000, description="a whole number from 10 to 1000000")]
    name: Name
    text: Annotated[str, Field(description="text of at most 32 KiB")]

    @model_validator(mode="before")
    @classmethod
    def _built_in(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        known = BY_NAME.get(value) if isinstance(value, str) else None
        if isinstance(value, int) and not isinstance(value, bool):
            known = BY_ID.get(value)
        if known is not None:
            return {"id": known.id, "name": known.name, "text": known.text}
        if isinstance(value, str) and value.isdecimal() and value.isascii() and int(value[:4]) in BY_ID:
            raise refusal(f"found the text {quoted(value)}, expected a number; remove the quotes")
        if isinstance(value, str):
            near = did_you_mean(value, BY_NAME)
            raise refusal(
                f"unknown scaffold {quoted(value)}, expected {_SCAFFOLD_SAID if near else one_of(BY_NAME)}{near}"
            )
        raise ValueError("no scaffold")

    @model_validator(mode="after")
    def _own(self) -> Scaffold:
        if any((self.id, self.name, self.text) == (known.id, known.name, known.text) for known in BUILT_IN):
            return self  # as a dumped grid holds it
        if self.id in BY_ID:
            raise refusal(f"found {self.id}, which is built in ({BY_ID[self.id].name}); expected 10 to 1000000", "id")
        if self.name in BY_NAME:
            raise refusal(f"found '{self.name}', which is built in; expected another name", "name")
        if self.name.isdecimal():
            raise refusal(f"found '{self.name}', expected a name that is no number; add a letter", "name")
        if not self.text.strip():
            raise refusal("found an empty text, expected some; for no text at all use scaffold 1 (baseline)", "text")
        if (size := len(self.text.encode())) > LARGEST_SCAFFOLD_BYTES:
            raise refusal(f"found {size} bytes, expected at most 32 KiB (32768 bytes); shorten it", "text")
        return self


class Analysis(Section):
    """How the grid's conversations are analysed; no part of any cell's specification.

    after_each: a small job for each cell that is done, in a grid of its own (`after_each.py`). model: what `embedding`
    embeds with. timeseries: whose figures of each turn are handed on to MLflow."""

    after_each: Annotated[bool, Field(description="true or false")] = False
    backend: Annotated[Literal["tfidf", "embedding"], Field(description="one of tfidf, embedding")] = "tfidf"
    method: Annotated[Literal["absolute", "profile"], Field(description="one of absolute, profile")] = "absolute"
    model: Annotated[Source | None, Field(description="a model that was added for embeddings, or null")] = None
    timeseries: Annotated[Literal["off", "tfidf", "embedding"], Field(description="one of off, tfidf, embedding")] = (
        "off"
    )


class Grid(Section):
    """A whole grid file of idle loops."""

    name: Name
    kind: Annotated[Literal["idle_loop"], Field(description="one of idle_loop, command")] = "idle_loop"
    seed: Seed = 0
    runs: Runs = 1
    tries: Tries = 3
    models: Annotated[
        list[Annotated[Model, Field(description="a mapping with name, engine and source")]],
        Field(min_length=1, max_length=200, description="a list of 1 to 200 models"),
    ]
    scaffolds: Annotated[
        list[Annotated[Scaffold, Field(description=_SCAFFOLD_SAID)]],
        Field(min_length=1, max_length=1000, description="a list of 1 to 1000 scaffolds"),
    ]
    axes: Annotated[Axes, Field(description="a mapping of extra axes")] = Axes()
    limits: Annotated[Limits, Field(description="a mapping of limits")] = Limits()
    memory: Memory = None
    template_date: Day = "2025-01-01"
    analysis: Annotated[Analysis, Field(description="a mapping with after_each, backend, method, ...")] = Analysis()

    @field_validator("models")
    @classmethod
    def _different_models(cls, models: list[Model]) -> list[Model]:
        _refuse_doubles("models", "name", [model.name for model in models])
        return models

    @field_validator("scaffolds")
    @classmethod
    def _different_scaffolds(cls, scaffolds: list[Scaffold]) -> list[Scaffold]:
        _refuse_doubles("scaffolds", "id", [scaffold.id for scaffold in scaffolds])
        _refuse_doubles("scaffolds", "name", [scaffold.name for scaffold in scaffolds])
        return scaffolds

    @model_validator(mode="after")
    def _cells(self) -> Grid:
        if (problem := cells_problem(self)) is not None:
            raise refusal(problem[1], problem[0])
        return self


def total_cells(grid: Grid) -> int:
    extra = math.prod(len(values) for values in grid.axes.given().values())
    return grid.runs * len(grid.models) * len(grid.scaffolds) * extra


def cells_problem(grid: Grid) -> tuple[str, str] | None:
    """(key, message) of what keeps a grid's cells from being planned, though each of its fields is valid alone."""
    if not 1 <= grid.runs <= MOST_RUNS:  # a copy with other runs was not validated
        return "runs", f"found {grid.runs}, expected a whole number from 1 to {MOST_RUNS}"
    if (total := total_cells(grid)) > MOST_CELLS:
        return "runs", f"the grid has {total} cells, expected at most {MOST_CELLS}; lower runs or shorten an axis"
    scaffolds, models = [scaffold.name for scaffold in grid.scaffolds], [model.name for model in grid.models]
    longest = keys.longest(scaffolds, models, grid.axes.given(), grid.runs)
    most = keys.LONGEST_KEY - (after_each.KEY_CHARACTERS if grid.analysis.after_each else 0)
    if len(longest) > most:
        said = f"there would be a cell key {quoted(longest)}, expected at most {most} characters"
        return "scaffolds", f"{said}; use shorter names or fewer axes"
    if grid.analysis.after_each and len(grid.name) > after_each.LONGEST_NAME:
        said = f"found {quoted(grid.name)}, whose analysis is the grid NAME{after_each.SUFFIX}"
        return "name", f"{said}; expected at most {after_each.LONGEST_NAME} characters"
    if (same := keys.same_key(scaffolds, models)) is not None:
        (scaffold, model), (other_scaffold, other_model) = same
        said = f"scaffold {scaffold} with model {model} and scaffold {other_scaffold} with model {other_model}"
        return "models", f"{said} give the same cell key '{scaffold}_{model}'; rename one"
    return None


def _refuse_doubles(of: str, field: str, values: list[Any]) -> None:
    first: dict[Any, int] = {}
    for index, value in enumerate(values):
        if first.setdefault(value, index) != index:
            shown = f"'{value}'" if isinstance(value, str) else value
            raise refusal(
                f"found {shown} a second time (first in {of}[{first[value]}]), expected another {field}", index, field
            )
