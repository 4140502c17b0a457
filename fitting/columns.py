"""What a predictor takes and answers, column by column: Markdown for people, OpenAPI for programs.

Many columns differ in a domain alone: they are one entry, whose name holds `<domain>`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from fitting.artifact import input_checks, predictor, schedule_predictor
from fitting.artifact.spec import ScheduleSpec, Spec
from training.record import keys, markdown, version

Json = dict[str, Any]

DOMAIN, VAL_DOMAIN, TASK, PHASE = "<domain>", "<validation domain>", "<task>", "<phase>"
INPUT, PARAMETER, OUTPUT = "input column", "parameter", "output column"
REQUIRED, ALWAYS = "required", "always"
PROPORTION, INTERVAL = "proportion of the tokens", "end of its 90 % interval"
LISTED = 400  # characters of the names of domains in Markdown
SHORT = 1200  # characters of an example in Markdown
DIGITS = 6  # of the numbers of an example


@dataclass(frozen=True)
class Column:
    """A column, or columns that differ in a domain, task or phase alone."""

    kind: str  # INPUT, PARAMETER (of the request, for all rows) or OUTPUT
    name: str  # may hold <domain>, <validation domain>, <task> and <phase>
    type: str  # as JSON names it
    unit: str
    rule: str  # what an input must be, or what an output is
    when: str  # of an input: REQUIRED, or its default; of an output: ALWAYS, or with what
    schema: Json  # of one value, beside its type


def columns(spec: Spec | ScheduleSpec) -> list[Column]:
    """The columns of a predictor, in their order."""
    unit = keys.unit_text(spec.unit)
    return list(_of_schedule(unit) if isinstance(spec, ScheduleSpec) else _of(spec, unit))


def _of(spec: Spec, unit: str) -> Iterator[Column]:
    yield _proportions(keys.MIXTURE + DOMAIN, "those of a row")
    for name, scale_unit in ((keys.N_PARAMS, "non-embedding parameters"), (keys.TOKENS, "tokens")):
        target, only = getattr(spec.target, name), getattr(spec.only, name)
        rule = f"only {only:,.0f}, that of all fitted runs" if only else "from 1 to 2^63"
        limits = {"minimum": 1, "exclusiveMaximum": input_checks.LARGEST}
        schema = {**({"const": only} if only else limits), "default": target}
        default = f"{target:,.0f}, the target's"
        yield Column(INPUT, name, "number", scale_unit, rule, default, schema)
    rule = "unique tokens of the domain, from 1 to 2^63; a mixture that needs more repeats them"
    limits = {"minimum": 1, "exclusiveMaximum": input_checks.LARGEST}
    yield Column(INPUT, keys.UNIQUE_TOKENS + DOMAIN, "number", "tokens", rule, "unlimited", limits)
    rule, schema = "`true`: an interval of each loss", {"default": False}
    yield Column(PARAMETER, "domain_intervals", "boolean", "", rule, "`false`", schema)
    rule = f"what to compare with, `{DOMAIN}` → proportion; they sum to 1, absent ones are 0"
    proportions = {domain: {"type": "number"} for domain in spec.domains}
    schema = {"properties": proportions, "additionalProperties": False}
    yield Column(PARAMETER, "reference", "object", PROPORTION, rule, "no comparison", schema)
    yield from _losses(unit)
    yield _answer("distance", "", "share of the tokens by which the nearest fitted mixture differs")
    if spec.accuracies:
        share = "share of the questions"
        yield _answer(keys.ACCURACY + TASK, share, "accuracy of a task with choices")
        for prefix in (keys.ACCURACY_LOW, keys.ACCURACY_HIGH):
            yield _answer(prefix + TASK, share, INTERVAL)
    for prefix in (keys.VAL_LOSS_LOW, keys.VAL_LOSS_HIGH):
        yield _answer(prefix + VAL_DOMAIN, unit, INTERVAL, "with `domain_intervals`")
    with_reference = "with `reference`"
    yield _answer("difference", unit, "objective less the reference's", with_reference)
    for name in ("difference_low", "difference_high"):
        yield _answer(name, unit, INTERVAL, with_reference)


def _of_schedule(unit: str) -> Iterator[Column]:
    yield _proportions(f"{keys.PHASE}{PHASE}/{keys.MIXTURE}{DOMAIN}", "those of a phase")
    yield from _losses(unit)
    yield _answer(f"{keys.PHASE}{PHASE}/objective", unit, "objective at the end of a phase")


def _proportions(name: str, which: str) -> Column:
    rule = f"from 0 to 1; {which} sum to 1 within {input_checks.TOLERANCE:g}"
    limits = {"minimum": 0, "maximum": 1 + input_checks.TOLERANCE}
    return Column(INPUT, name, "number", PROPORTION, rule, REQUIRED, limits)


def _losses(unit: str) -> Iterator[Column]:
    yield _answer(keys.VAL_LOSS + VAL_DOMAIN, unit, "loss")
    yield _answer("objective", unit, "weighted sum of the losses")
    for name in ("objective_low", "objective_high"):
        yield _answer(name, unit, INTERVAL)


def _answer(name: str, unit: str, rule: str, when: str = ALWAYS) -> Column:
    return Column(OUTPUT, name, "number", unit, rule, when, {})


def names(column: Column, spec: Spec | ScheduleSpec) -> list[str]:
    """The full names of an entry's columns."""
    marks = {mark: values for mark, values in _marks(spec).items() if mark in column.name}
    found = []
    for values in product(*marks.values()):
        name = column.name
        for mark, value in zip(marks, values, strict=True):
            name = name.replace(mark, value)
        found.append(name)
    return found


def _marks(spec: Spec | ScheduleSpec) -> dict[str, Sequence[str]]:
    """What the marks in names stand for, phases first."""
    phases = len(spec.law["tokens"]) if isinstance(spec, ScheduleSpec) else 0
    return {
        PHASE: [str(k) for k in range(1, phases + 1)],
        DOMAIN: spec.domains,
        VAL_DOMAIN: spec.val_domains,
        TASK: [] if isinstance(spec, ScheduleSpec) else list(spec.accuracies),
    }


@dataclass(frozen=True)
class Example:
    """A row to predict, and what the predictor answers."""

    row: dict[str, float]
    answer: dict[str, float]

    @property
    def request(self) -> Json:
        """The body of a request."""
        return {"dataframe_records": [self.row]}

    @property
    def response(self) -> Json:
        """The body of the response to it."""
        return {"predictions": [self.answer]}


def example(spec: Spec | ScheduleSpec, artifacts: Mapping[str, str]) -> Example:
    """The answer of a predictor with these artifacts, name → path, to the uniform mixture."""
    schedule = isinstance(spec, ScheduleSpec)
    model = schedule_predictor.SchedulePredictor() if schedule else predictor.MixturePredictor()
    model.load_context(SimpleNamespace(artifacts=artifacts))
    row = dict.fromkeys(names(columns(spec)[0], spec), 1 / len(spec.domains))
    answer = model.predict(None, pd.DataFrame([row])).round(DIGITS)
    return Example(row, answer.iloc[0].to_dict())


# Markdown ----------------------------------------------------------------------------------------


def description(spec: Spec | ScheduleSpec, shown: Example | None = None) -> str:
    """The columns as tables, what their marks stand for, and an example where it is short.

    Names of domains are listed up to LISTED characters, so that it fits a description in MLflow.
    """
    entries = columns(spec)
    parts = []
    for kind, heads in (
        (INPUT, ("rule", "default")),
        (PARAMETER, ("rule", "default")),
        (OUTPUT, ("what it is", "given")),
    ):
        cells = [(f"`{c.name}`", c.type, c.unit, c.rule, c.when) for c in entries if c.kind == kind]
        if cells:
            head = (kind, "type", "unit", *heads)
            parts.append(markdown.table(head, cells, numbers=False))
    used = "".join(c.name for c in entries)
    parts += [
        f"`{m}`: {markdown.escaped(_listed(values))}"
        for m, values in _marks(spec).items()
        if m in used
    ]
    if shown:
        bodies = (("Request", shown.request), ("Answer", shown.response))
        texts = [f"{title}:\n```json\n{json.dumps(body, indent=1)}\n```" for title, body in bodies]
        parts += texts if len("".join(texts)) <= SHORT else []
    return "\n\n".join(parts)


def _listed(values: Sequence[str]) -> str:
    text = ", ".join(values)
    if len(text) <= LISTED:
        return text
    return f"{text[:LISTED].rpartition(', ')[0] or values[0]}, … ({len(values)} in all)"


# OpenAPI -----------------------------------------------------------------------------------------


def openapi(spec: Spec | ScheduleSpec, shown: Example) -> Json:
    """The OpenAPI 3.1 document of `mlflow models serve` for a predictor."""
    healthy = {
        "summary": "Whether the server is ready",
        "responses": {"200": {"description": "Ready."}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Predictor of validation losses",
            "version": version.version(),
            "description": description(spec),
        },
        "paths": {
            "/invocations": {"post": _invocations(shown)},
            "/ping": {"get": {**healthy, "operationId": "ping"}},
            "/health": {"get": {**healthy, "operationId": "health"}},
            "/version": {
                "get": {
                    "summary": "The version of MLflow",
                    "operationId": "version",
                    "responses": {"200": {"description": "For example, 3.17.2."}},
                }
            },
        },
        "components": {"schemas": _schemas(spec)},
    }


def _invocations(shown: Example) -> Json:
    """The operation that predicts."""
    csv = pd.DataFrame([shown.row]).to_csv(index=False)
    error = {"application/json": {"schema": _ref("Error")}}
    text, binary = {"type": "string"}, {"type": "string", "format": "binary"}
    return {
        "summary": "Predict the validation losses of each row",
        "operationId": "predict",
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("Request"), "example": shown.request},
                "text/csv": {"schema": text, "example": csv},
                "application/vnd.apache.parquet": {"schema": binary},
            },
        },
        "responses": {
            "200": {
                "description": "An answer for each row, in their order.",
                "content": {
                    "application/json": {"schema": _ref("Response"), "example": shown.response}
                },
            },
            "400": {"description": "A bad row: its message names row, column, value and rule.",
                    "content": error},
            "415": {"description": "Another content type, or an encoding other than UTF-8.",
                    "content": {"text/plain": {"schema": text}}},
            "504": {"description": "The prediction took longer than the server's limit."},
        },
    }  # fmt: skip


def _schemas(spec: Spec | ScheduleSpec) -> Json:
    row, parameters, prediction = (_object(spec, kind) for kind in (INPUT, PARAMETER, OUTPUT))
    ignored: Json = {"run": {}, "step": {}, "unit": {}}  # of an exported table
    measured = "|".join(prefix.rstrip("/") for prefix in input_checks.MEASURED)
    row["properties"] = {**row["properties"], **ignored}
    row |= {"patternProperties": {f"^({measured})/": {}}, "additionalProperties": False}
    rows = {"type": "array", "items": _ref("Row"), "minItems": 1}
    split = {
        "type": "object",
        "required": ["columns", "data"],
        "properties": {
            "columns": {"type": "array", "items": {"type": "string"}},
            "index": {"type": "array"},
            "data": {"type": "array", "items": {"type": "array"}, "minItems": 1},
        },
    }
    forms = {"dataframe_split": split, "dataframe_records": rows, "instances": rows, "inputs": rows}
    with_parameters = {"params": parameters} if parameters["properties"] else {}
    return {
        "Row": row,
        "Request": {
            "type": "object",
            "properties": {**forms, **with_parameters},
            "oneOf": [{"required": [form]} for form in forms],
        },
        "Prediction": prediction,
        "Response": {
            "type": "object",
            "required": ["predictions"],
            "properties": {"predictions": {"type": "array", "items": _ref("Prediction")}},
        },
        "Error": {
            "type": "object",
            "required": ["error_code", "message"],
            "properties": {"error_code": {"type": "string"}, "message": {"type": "string"}},
        },
    }


def _object(spec: Spec | ScheduleSpec, kind: str) -> Json:
    """The schema of an object of the columns of one kind."""
    properties: Json = {}
    required: list[str] = []
    for column in columns(spec):
        if column.kind != kind:
            continue
        unit = f" ({column.unit})" if column.unit else ""
        about = {"type": column.type, "description": f"{column.rule}{unit}", **column.schema}
        for name in names(column, spec):
            properties[name] = about
            required += [name] * (column.when in (REQUIRED, ALWAYS))
    return {"type": "object", "properties": properties, "required": required}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def write_openapi(folder: Path, spec: Spec | ScheduleSpec, shown: Example) -> str:
    """Write `openapi.json` of a predictor, with an example, and return its path."""
    path = folder / "openapi.json"
    path.write_text(json.dumps(openapi(spec, shown), indent=1))
    return str(path)
