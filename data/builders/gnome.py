"""GNOME user documentation: Mallard pages in many languages, paragraphs left in English taken out."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from accordion.errors import DataError
from builders.packages import Packages, check_count

LOCALES = 42  # the English original and 41 translations
PAGES = 293  # of gnome-help in each of them
MALLARD = "{http://projectmallard.org/1.0/}"
SKIPPED = {f"{MALLARD}{name}" for name in ("info", "links", "comment")}
LINES = {f"{MALLARD}{name}" for name in ("title", "subtitle", "p", "code", "screen")}  # each is a line of its own
TAGS = {"C": "en", "sr@latin": "sr-Latn", "zh_CN": "zh"}  # others: `pt_BR` is pt-BR
SHORT_LINE = 25  # characters; a shorter one may well be the same in two languages (names, menu entries, commands)
SHORT_PAGE = 200  # characters; what is left of a page must be longer


def read_page(path: Path) -> list[str]:
    """Lines of a Mallard page in their order: titles, paragraphs, blocks of code.

    Raises:
        DataError: the file is not well-formed.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not a Mallard page ({error})") from None
    for keys in root.iter(f"{MALLARD}keyseq"):
        for key in list(keys)[:-1]:
            key.tail = "+"
    return [line for line in (" ".join(text.split()) for text in _lines(root)) if line]


def _lines(element: ElementTree.Element) -> Iterator[str]:
    if element.tag in LINES:
        yield "".join(element.itertext())
    elif element.tag not in SKIPPED:
        for child in element:
            yield from _lines(child)


def gnome_rows(packages: Packages) -> dict[str, list[dict[str, str]]]:
    """Language -> rows of its pages; a paragraph that is the English one word for word was never translated."""
    root = packages.deb("gnome-user-docs") / "usr/share/help"
    locales = sorted(path.name for path in root.iterdir() if path.is_dir())
    check_count("gnome-user-docs", "locales", len(locales), LOCALES, 0.05)
    original = {path.relative_to(root / "C"): set(read_page(path)) for path in sorted((root / "C").glob("*/*.page"))}
    found: dict[str, list[dict[str, str]]] = {}
    for locale in locales:
        pages = sorted((root / locale).glob("*/*.page"))
        counted = sum(path.parent.name == "gnome-help" for path in pages)
        check_count("gnome-user-docs", f"pages of gnome-help in {locale}", counted, PAGES)
        language = TAGS.get(locale, locale.replace("_", "-"))
        for path in pages:
            lines = read_page(path)
            english = original.get(path.relative_to(root / locale), set()) if locale != "C" else set()
            kept = [line for line in lines if len(line) < SHORT_LINE or line not in english]
            text = "\n".join(kept)
            # what is left of a page that was translated in small part only is menu entries and file names
            if len(text) < SHORT_PAGE or len(text) < 0.5 * len("\n".join(lines)):
                continue
            page = f"gnome/{path.parent.name}/{path.stem}"
            found.setdefault(language, []).append(
                {
                    "id": f"{page}/{language}",
                    "language": language,
                    "title": kept[0],
                    "group": page,
                    "text": text,
                    "source": "gnome-user-docs",
                    "licence": "CC-BY-SA-3.0",
                }
            )
    return found
