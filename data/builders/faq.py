"""The Debian FAQ in ten languages: questions and answers, aligned by the id of their section."""

import re
from pathlib import Path

from builders.html import read_sections
from builders.packages import Package, Packages, check_count
from builders.text import translated
from builders.tiers import Tier
from builders.write import Written, json_lines, languages_of, write_gzip

FOLDERS = {"zh": "zh-cn"}  # others: the language itself
SECTIONS = 153  # in the English original, with the introductions of its chapters
NUMBER = re.compile(r"^(Chapter |Kapitel |Chapitre |Capitolo |Capítulo |Hoofdstuk |Глава )?[\d.第章장]+\s*")


def package(language: str) -> Package:
    """(kind, name) of the FAQ's package in a language."""
    return "deb", "debian-faq" if language == "en" else f"debian-faq-{FOLDERS.get(language, language)}"


def sections(packages: Packages, language: str) -> dict[str, tuple[str, str]]:
    """Section id -> (question, answer)."""
    root = packages.deb(package(language)[1]) / "usr/share/doc/debian/FAQ"
    found = {}
    for path in sorted(root.rglob(f"*.{FOLDERS.get(language, language)}.html")):
        for section in read_sections(path.read_text(encoding="utf-8"), start=("class", "chapter"),
                                     drop={"toc", "navfooter", "navheader"}):  # fmt: skip
            question = NUMBER.sub("", section.title).strip()
            if section.anchors and question and section.text and translated(f"{question} {section.text}", language):
                found[f"{path.name.split('.')[0]}#{section.anchors[0]}"] = (question, section.text)
    return found


def build_faq(packages: Packages, out: Path, tier: Tier) -> list[Written]:
    """`faq/faq.jsonl.gz`: section id (aligned over languages), language, question, answer."""
    found = {language: sections(packages, language) for language in tier.faq_languages}
    check_count("debian-faq", "questions in English", len(found["en"]), SECTIONS)
    for language, own in found.items():
        # translations lag behind: a release without half of the sections is no translation that this reader knows
        check_count(package(language)[1], "questions that the original has too", len(set(own) & set(found["en"])),
                    SECTIONS, 0.5)  # fmt: skip
    keys = sorted(set().union(*found.values()))
    if tier.faq_characters:
        keys = [key for key in keys if all(key in own for own in found.values())
                and len(found["en"][key][1]) <= tier.faq_characters]  # fmt: skip
    rows = [
        {"section": key, "language": language, "question": own[key][0], "answer": own[key][1]}
        for key in keys
        for language, own in found.items()
        if key in own
    ]
    write_gzip(out / "faq/faq.jsonl.gz", json_lines(rows))
    return [
        Written(
            file="faq/faq.jsonl.gz",
            records=len(rows),
            unit="answers",
            languages=languages_of(rows),
            packages=tuple(package(language) for language in tier.faq_languages),
            licence="the FAQ's own notice (copyleft)",
            changes="sections as plain text",
        )
    ]
