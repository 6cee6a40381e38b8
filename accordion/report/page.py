"""The report: one self-contained HTML page, summary.json and the figures as PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from accordion.report.run import RunFigures
from accordion.report.section import Section
from accordion.report.sections import sections
from accordion.report.sections_model import unigram_gains
from accordion.report.style import save_png
from accordion.report.summary import Summary, summarise
from accordion.report.words import cosine, duration, power
from accordion.store.atomic import atomic_write

_FOLDER = Path(__file__).parent
_LINK_NAMES = {"mlflow": "MLflow UI", "endpoint": "served model", "example": "example request", "store": "artifacts"}


@dataclass(frozen=True)
class Tile:
    """A key figure at the top of the page."""

    name: str
    value: str
    note: str
    anchor: str
    tone: str = ""


@dataclass(frozen=True)
class Link:
    """A place to look; `href` is None for what is no web address."""

    name: str
    text: str
    href: str | None


def render(run: RunFigures, *, out: Path) -> Summary:
    """Write report.html, summary.json, run.json and figures/*.png into `out`.

    Raises:
        DataError: a stage that ran lacks a figure; the text names both.
    """
    summary = summarise(run.metrics, run.timings)
    parts = sections(run, summary)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for section in parts:
        for drawing in section.drawings:
            save_png(drawing.figure, figures / f"{drawing.name}.png")
    atomic_write(out / "report.html", page(run, summary, parts))
    run.save(out)
    summary.write(out / "summary.json")
    return summary


def page(run: RunFigures, summary: Summary, parts: Sequence[Section]) -> str:
    """The whole page as text; it asks nothing of the network."""
    title, lead = headline(summary)
    template = _templates().get_template("template.html")
    return template.render(
        title=run.about.get("profile", "run report"),
        css=Markup(style_sheet()),
        headline=title,
        lead=lead,
        about=run.about,
        tiles=tiles(summary),
        links=[
            Link(_LINK_NAMES.get(name, name), text, text if text.startswith(("http://", "https://")) else None)
            for name, text in run.links.items()
        ],
        sections=parts,
        render_section=render_section,
    )


def render_section(section: Section) -> Markup:
    """One section as HTML."""
    return Markup(_templates().get_template("section.html").render(section=section))


@cache
def style_sheet(scope: str = "") -> str:
    """The page's CSS; with a `scope` (a selector), for a fragment inside someone else's page."""
    css = (_FOLDER / "page.css").read_text()
    if not scope:
        return css
    for root in (":root {", "\nbody {", "\nhtml {"):
        css = css.replace(root, ("\n" if root[0] == "\n" else "") + ":scope {")
    return f"@scope ({scope}) {{\n{css}\n}}"


def headline(summary: Summary) -> tuple[str, list[str]]:
    """What happened, in plain words: a title and a few sentences."""
    gate, registry, rollout = summary.gate, summary.registry, summary.rollout
    if gate is None:
        return "The run ended before its gate", ["Nothing was judged, registered or rolled out."]
    failed = [check for check in gate.checks if not check.passed]
    if not gate.passed:
        lines = [
            f"{len(failed)} of {len(gate.checks)} checks were not met, so this model was not rolled out. "
            "Whatever was served before is still served."
        ]
        return "The gate failed, nothing was rolled out", lines
    lines = [f"All {len(gate.checks)} gate checks were met."]
    if registry is not None:
        aliases = " and ".join(registry.aliases)
        lines[0] += f" The encoder is registered as {registry.model}, version {registry.version}" + (
            f", alias {aliases}." if aliases else "."
        )
    if rollout is None:
        return "The gate passed, no rollout followed", [*lines, "No server was touched in this run."]
    lines.append(
        f"Triton serves version {rollout.served_version}. Its answers agree with the evaluated model "
        f"(cosine {cosine(rollout.golden_cosine)}), and {rollout.errors:,} of {rollout.requests:,} requests failed "
        "while it took over."
    )
    if registry is not None and registry.version != rollout.served_version:
        return f"The gate passed, but version {rollout.served_version} is still served", lines
    return f"The gate passed and version {rollout.served_version} is being served", lines


def tiles(summary: Summary) -> list[Tile]:
    """The key figures of whatever ran."""
    found = []
    if summary.gate is not None:
        passed = sum(check.passed for check in summary.gate.checks)
        tone = "good" if summary.gate.passed else "bad"
        value = "passed" if summary.gate.passed else "failed"
        found.append(Tile("Gate", value, f"{passed} of {len(summary.gate.checks)} checks", "gate", tone))
    if summary.retrieval:
        name, domain = next(iter(summary.retrieval.items()))
        bm25 = domain.ndcg10.get("bm25")
        note = f"nDCG@10, {name}" + (f"; BM25 {bm25.mean:.3f}" if bm25 else "")
        found.append(Tile("Retrieval", f"{domain.ndcg10['encoder'].mean:.3f}", note, "retrieval"))
    if summary.pretrain is not None:
        gains = unigram_gains(summary.pretrain)
        note = "text loss under unigram; least: " + min(gains, key=lambda m: gains[m])
        note += f" {min(gains.values()):.0%}"
        found.append(Tile("Pre-training", f"−{gains['text']:.0%}", note, "pretrain"))
    if summary.posttrain is not None:
        post = summary.posttrain
        note = f"held-out problems solved; before {post.pass_before:.1%}"
        found.append(Tile("Post-training", f"{post.pass_after:.1%}", note, "posttrain"))
    if summary.extract is not None:
        note = "largest logit difference of a cut-out model"
        found.append(Tile("Extraction", power(summary.extract.max_abs_logit_diff), note, "family"))
    total = sum(timing.seconds for timing in summary.stages.values())
    cached = sum(timing.cached for timing in summary.stages.values())
    found.append(Tile("Time", duration(total), f"{cached} of {len(summary.stages)} stages cached", "times"))
    return found


@cache
def _templates() -> Environment:
    loader = FileSystemLoader(_FOLDER)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
