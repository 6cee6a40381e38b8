"""A section of the report: one sentence, its figures and its tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from accordion.report.style import to_svg


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a caption; columns whose header is in `words` are left-aligned, the others are numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: Sequence[str] = ()
    folded: bool = True


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure, its file name under figures/, what it shows (caption), and its text for who cannot see it."""

    name: str
    figure: Figure
    caption: str
    alt: str

    @property
    def svg(self) -> Markup:
        return to_svg(self.figure, self.name, self.alt)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section; `finding` is its one sentence. Without figures and tables it says why it is empty."""

    anchor: str
    title: str
    finding: str
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    media: Sequence[Markup] = ()
    notes: Sequence[str] = ()


def absent(anchor: str, title: str, why: str) -> Section:
    """The section of a stage that did not run, or whose files are gone: says so."""
    return Section(anchor=anchor, title=title, finding=why)
