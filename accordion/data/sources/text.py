"""Text, FAQ and dictionaries: JSON lines and TSV, in several languages."""

from pathlib import Path

from accordion.data.sources.base import Quarantine, Row, json_rows, lines, require, require_rows

TEXT_KEYS = ("id", "language", "group", "text", "source", "licence")


def read_text(folder: Path, quarantine: Quarantine) -> list[Row]:
    """Rows of `text/*.jsonl.gz`: id, text, language, group, source, licence."""
    part = require(folder / "text", "JSON lines of text")
    rows = [
        {key: row[key] for key in TEXT_KEYS}
        for path in sorted(part.glob("*.jsonl*"))
        for _, row in json_rows(path, quarantine, TEXT_KEYS)
    ]
    return require_rows(rows, part, quarantine)


def read_faq(folder: Path, quarantine: Quarantine) -> list[Row]:
    """Rows of `faq/*.jsonl.gz`: section (aligned over languages), language, question, answer."""
    part = require(folder / "faq", "questions and answers")
    keys = ("section", "language", "question", "answer")
    rows = [
        {key: row[key] for key in keys}
        for path in sorted(part.glob("*.jsonl*"))
        for _, row in json_rows(path, quarantine, keys)
    ]
    return require_rows(rows, part, quarantine)


def read_dictionaries(folder: Path, quarantine: Quarantine) -> dict[str, list[Row]]:
    """`en-XX` -> rows (word, translation) of each `dictionaries/en-XX.tsv.gz`."""
    part = require(folder / "dictionaries", "bilingual word lists")
    found = {}
    for path in sorted(part.glob("*.tsv*")):
        rows: list[Row] = []
        for record, line in lines(path, quarantine):
            fields = [field.strip() for field in line.split("\t")]
            if len(fields) == 2 and all(fields):
                rows.append({"word": fields[0], "translation": fields[1]})
            else:
                quarantine.refuse(path, record, f"{len(fields)} fields; wants word, tab, translation")
        found[path.name.split(".")[0]] = require_rows(rows, path, quarantine)
    require_rows([row for rows in found.values() for row in rows], part, quarantine)
    return found
