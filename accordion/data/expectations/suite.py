"""Great Expectations over tables: declared suites, kept failing rows, a JSON result and one readable page.

A suite is plain data, so declaring one imports nothing; the library itself is imported when a suite runs.
Everything happens in memory: an ephemeral context, pandas, no telemetry, no network.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from accordion.data.expectations.page import write_page
from accordion.errors import ValidationFailed
from accordion.observe import progress

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.datasource.fluent import PandasDatasource

ROWS_NAMED = 5  # ids quoted in the error
FAILED_ROWS = "failed_rows.jsonl"
ROWS_KEPT = 1000  # failing rows of an expectation written to failed_rows.jsonl


@dataclass(frozen=True)
class Expect:
    """One expectation: its Great Expectations name without `expect_`, and its arguments."""

    name: str
    arguments: Mapping[str, Any]
    note: str = ""
    warning: bool = False

    @property
    def type(self) -> str:
        return f"expect_{self.name}"

    def noted(self, note: str, *, warning: bool = False) -> "Expect":
        """The same with a note that a failure shows; as a warning it is reported and does not stop the run."""
        return replace(self, note=note, warning=warning)


def expect(name: str, **arguments: Any) -> Expect:
    """`expect("column_values_to_not_be_null", column="id")`."""
    return Expect(name, arguments)


@dataclass(frozen=True)
class Suite:
    """A table and what is expected of it; every table has a column `id` that names its rows."""

    name: str
    table: pd.DataFrame
    expectations: Sequence[Expect]


@dataclass
class Outcome:
    """What one expectation came to."""

    suite: str
    type: str
    column: str
    success: bool
    checked: int | None
    failed: int
    observed: Any
    arguments: dict[str, Any]
    error: str | None
    warning: bool = False
    note: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def explain(self) -> str:
        """One line: suite, expectation, column, how many rows, the first ids."""
        head = f"{self.suite}: {self.type}({self.column or 'table'}{_bounds(self.arguments)})"
        note = f" ({self.note})" if self.note else ""
        if self.error:
            return f"{head}: {self.error}"
        if self.rows:
            first = ", ".join(str(row["id"]) for row in self.rows[:ROWS_NAMED])
            return f"{head}: {self.failed} of {self.checked} rows; first: {first}{note}"
        return f"{head}: observed {self.observed}{note}"


def validate(suites: Iterable[Suite], out: Path, title: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Check every suite; write result.json and report.html into `out`.

    Args:
        notes: what a reader must know besides, for example why something was not measured.

    Returns:
        suites (name -> rows, expectations, failed, warned), expectations, failed, warned, notes.

    Raises:
        ValidationFailed: one line for each failing expectation, with column, count and first rows; all
            failing rows were written to `out/failed_rows.jsonl` before.
    """
    results: list[ExpectationSuiteValidationResult] = []
    outcomes: list[Outcome] = []
    sizes = {}
    source = _context().data_sources.add_pandas("tables")
    for suite in progress(list(suites), title, unit="suite"):
        result = _run(suite, source)
        for each in result.results:
            each.result = _plain(each.result)
        results.append(result)
        outcomes += [_outcome(suite, each) for each in result.results]
        sizes[suite.name] = len(suite.table)
    missed = [outcome for outcome in outcomes if not outcome.success]
    failed = [outcome for outcome in missed if not outcome.warning]
    warned = [outcome for outcome in missed if outcome.warning]
    document = {
        "success": not failed,
        "expectations": [{**vars(outcome), "rows": outcome.rows[:ROWS_NAMED]} for outcome in outcomes],
        "rows": sizes,
        "notes": list(notes),
    }
    (out / "result.json").write_text(json.dumps(document, indent=1, ensure_ascii=False, default=str) + "\n")
    remarks = [*notes, *(f"warning: {outcome.explain()}" for outcome in warned)]
    write_page(results, out / "report.html", title, [outcome.explain() for outcome in failed], remarks)
    if failed:
        _write_failed_rows(failed, out / FAILED_ROWS)
        lines = "\n".join(f"  {outcome.explain()}" for outcome in failed)
        raise ValidationFailed(
            f"{title}: {len(failed)} of {len(outcomes)} expectations failed\n{lines}\n"
            f"all failing rows are in {FAILED_ROWS}; mend or remove them at their source, or, if they "
            "are right, change the bounds in the profile (validate_data, validate_shards)"
        )
    return {
        "suites": {
            name: _sums([each for each in outcomes if each.suite == name], rows) for name, rows in sizes.items()
        },
        "expectations": len(outcomes),
        "failed": 0,
        "warned": len(warned),
        "notes": list(notes),
    }


def _sums(outcomes: Sequence[Outcome], rows: int) -> dict[str, int]:
    warned = sum(not outcome.success for outcome in outcomes)
    return {"rows": rows, "expectations": len(outcomes), "failed": 0, "warned": warned}


def _context() -> "EphemeralDataContext":
    """An in-memory context: no project folder, no progress bars, and no telemetry."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    # imported here: it takes seconds, and only a process that validates should pay for them
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _run(suite: Suite, source: "PandasDatasource") -> "ExpectationSuiteValidationResult":
    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
    from great_expectations.expectations.metadata_types import FailureSeverity

    asset = source.add_dataframe_asset(suite.name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": suite.table})
    expectations = [
        ExpectationConfiguration(
            type=each.type,
            kwargs=dict(each.arguments),
            severity=FailureSeverity.WARNING if each.warning else FailureSeverity.CRITICAL,
            meta={"note": each.note},
        ).to_domain_obj()
        for each in suite.expectations
    ]
    return batch.validate(
        ExpectationSuite(suite.name, expectations=expectations),
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["id"]},
    )


def _plain(value: Any) -> Any:
    """NumPy scalars as Python numbers: the page renderer takes no `np.float64(0.5)` of NumPy 2."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _outcome(suite: Suite, result: "ExpectationValidationResult") -> Outcome:
    document: dict[str, Any] = dict(result.to_json_dict())
    arguments = {key: value for key, value in document["expectation_config"]["kwargs"].items() if key != "batch_id"}
    details = document["result"]
    settings = document["expectation_config"]
    columns = arguments.pop("column", None) or ", ".join(arguments.pop("column_list", []))
    pairs = [arguments.pop(key) for key in ("column_A", "column_B") if key in arguments]
    return Outcome(
        suite=suite.name,
        type=settings["type"],
        column=columns or ", ".join(pairs),
        success=bool(document["success"]),
        checked=details.get("element_count"),
        failed=details.get("unexpected_count", 0 if document["success"] else 1),
        observed=details.get("observed_value"),
        arguments=arguments,
        error=_exception(document.get("exception_info") or {}),
        warning=settings.get("severity") == "warning",
        note=(settings.get("meta") or {}).get("note", ""),
        rows=details.get("unexpected_index_list") or [],
    )


def _exception(info: Mapping[str, Any]) -> str | None:
    """The message of an expectation that could not be computed (a missing column, a wrong type)."""
    for entry in (info, *(value for value in info.values() if isinstance(value, Mapping))):
        if entry.get("raised_exception"):
            return str(entry.get("exception_message"))
    return None


def _bounds(arguments: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in arguments.items() if value is not None and value != 1.0}
    return "".join(f", {key}={value}" for key, value in shown.items())


def _write_failed_rows(failed: Iterable[Outcome], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for outcome in failed:
            whole = {"observed": outcome.observed, "note": outcome.note, "error": outcome.error}
            for row in outcome.rows[:ROWS_KEPT] or [whole]:
                record = {"suite": outcome.suite, "expectation": outcome.type, "column": outcome.column, **row}
                file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
