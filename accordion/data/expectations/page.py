"""One self-contained page of Great Expectations' own rendering: readable offline, no script, no link outside."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult
    from jinja2 import Template

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c2530 }
h1 { font-size: 1.5rem } h5 { font-size: 1.1rem; margin: .8rem 0 .3rem } h6, .h6 { font-size: 1rem; margin: .4rem 0;
 font-weight: 600 }
details { border: 1px solid #d5dbe1; border-radius: 6px; margin: .6rem 0; padding: .3rem 1rem }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0 }
table { border-collapse: collapse; margin: .4rem 0; width: 100% } td, th { border-top: 1px solid #e3e8ec;
 padding: .25rem .6rem; text-align: left; vertical-align: top; overflow-wrap: anywhere }
.text-success { color: #1a7f37 } .text-danger { color: #c62828 } .text-warning { color: #9a6700 }
.fa-check-circle::before { content: "\\2714" } .fa-times::before { content: "\\2718" }
.fa-exclamation-triangle::before { content: "\\26A0" } i { font-style: normal }
.badge { background: #e8edf2; border-radius: 3px; padding: 0 .3rem; font-family: ui-monospace, monospace }
.cooltip > span { display: none } ol.failures li { color: #c62828; margin: .3rem 0 }
"""
# the loop of Great Expectations' page.j2 without its frame (scripts, style sheets, logo, navigation)
SECTIONS = "{% for section in sections %}{% set section_loop = loop %}{% include 'section.j2' %}{% endfor %}"


def write_page(
    results: Sequence["ExpectationSuiteValidationResult"],
    path: Path,
    title: str,
    failures: Sequence[str],
    notes: Sequence[str] = (),
) -> None:
    """Render every suite's result below one heading, failures and notes first; failed suites are unfolded."""
    from great_expectations.render.view import DefaultJinjaPageView

    template = DefaultJinjaPageView().env.from_string(SECTIONS)
    parts = []
    for result in results:
        counts = result.statistics
        mark = '<span class="text-success">✔</span>' if result.success else '<span class="text-danger">✘</span>'
        summary = (
            f"{mark} {html.escape(result.suite_name)}: {counts['successful_expectations']} of "
            f"{counts['evaluated_expectations']} expectations met"
        )
        state = "" if result.success else " open"
        parts.append(f"<details{state}><summary>{summary}</summary>{_body(result, template)}</details>")
    verdict = (
        "<p>Every expectation is met.</p>"
        if not failures
        else f"<ol class='failures'>{''.join(f'<li>{html.escape(line)}</li>' for line in failures)}</ol>"
    )
    remarks = f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in notes)}</ul>" if notes else ""
    path.write_text(
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>{verdict}{remarks}{''.join(parts)}</body></html>\n",
        encoding="utf-8",
    )


def _body(result: "ExpectationSuiteValidationResult", template: "Template") -> str:
    from great_expectations.render.renderer import ValidationResultsPageRenderer

    cast("dict[str, Any]", result.meta).pop("batch_markers", None)  # load times: the same data shall give the same page
    markup = template.render(ValidationResultsPageRenderer().render(result).to_json_dict())
    markup = re.sub(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "", markup)  # random parts of element ids
    markup = re.sub(r"<script\b.*?</script>", "", markup, flags=re.DOTALL)
    markup = re.sub(r'<div id="[^"]*-parent" >\s*<p class="m-0">.*?</p>', "<div>", markup, flags=re.DOTALL)
    return re.sub(r'<a\b[^>]*href="(?!#)[^"]*"[^>]*>(.*?)</a>', r"\1", markup, flags=re.DOTALL)
