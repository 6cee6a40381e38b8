"""Retrieval collections in the BEIR layout: LibreOffice help, KJV with Nave's topics, the Python manual."""

import re
from collections import defaultdict
from collections.abc import Iterable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from builders.html import Section, read_sections
from builders.packages import Package, Packages, check_count
from builders.sword import TOPICS, topics, verses
from builders.text import help_pages
from builders.tiers import Tier
from builders.write import Written, json_lines, rank, write_gzip

HELP_PACKAGES: tuple[Package, ...] = (("deb", "libreoffice-help-en-us"),)
BIBLE_PACKAGES: tuple[Package, ...] = (("deb", "sword-text-kjv"), ("deb", "sword-dict-naves"))
PYTHON_PACKAGES: tuple[Package, ...] = (("deb", "python3.11-doc"),)
TEST_SHARE = 0.3
HELP_SECTIONS = 15_610
HELP_QUERIES = 6276
PYTHON_SECTIONS = 4352
PYTHON_QUERIES = 1611
UNITS = {"corpus": "documents", "queries": "queries", "qrels/train": "judgements", "qrels/test": "judgements"}
SHORTEST_SECTION = 40  # characters; less is a heading with a link
MOST_RELEVANT = 10  # a query that points at more sections than this asks for nothing in particular


def _write(
    out: Path,
    domain: str,
    corpus: list[dict[str, str]],
    queries: dict[str, str],
    qrels: dict[str, dict[str, list[str]]],
    **about: Any,
) -> list[Written]:
    """Write one domain. qrels: split -> query id -> relevant document ids; about: what its files have in common."""
    folder = out / "retrieval" / domain
    known = {row["_id"] for row in corpus}
    assert all(document in known for split in qrels.values() for found in split.values() for document in found)
    write_gzip(folder / "corpus.jsonl.gz", json_lines(corpus))
    write_gzip(folder / "queries.jsonl.gz", json_lines({"_id": key, "text": text} for key, text in queries.items()))
    counts = {"corpus.jsonl.gz": len(corpus), "queries.jsonl.gz": len(queries)}
    for split, judgements in qrels.items():
        lines = [f"{query}\t{document}\t1\n" for query, found in judgements.items() for document in found]
        path = folder / f"qrels/{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
        counts[f"qrels/{split}.tsv"] = len(lines)
    return [
        Written(
            file=f"retrieval/{domain}/{file}", records=count, unit=UNITS[file.split(".")[0]], languages=("en",), **about
        )
        for file, count in counts.items()
    ]


def _documents(sections: dict[str, Section], keys: Iterable[str], tier: Tier) -> list[dict[str, str]]:
    """Rows of a corpus; a section longer than the tier's bound is cut at a space."""
    longest = tier.section_characters
    rows = []
    for key in sorted(keys):
        text = sections[key].text.replace("\n", " ")
        if longest and len(text) > longest:
            text = text[:longest].rsplit(" ", 1)[0]
        rows.append({"_id": key, "title": sections[key].title, "text": text})
    return rows


def _with_others(sections: dict[str, Section], relevant: set[str], bound: int | None) -> set[str]:
    """The relevant sections and others, up to the bound: they make the search harder."""
    others = sorted(set(sections) - relevant, key=rank)
    return relevant | set(others if bound is None else others[: max(0, bound - len(relevant))])


def build_help(packages: Packages, out: Path, tier: Tier) -> list[Written]:
    """Keyword index entries (queries) -> the page sections they point at; train and test queries disjoint."""
    sections: dict[str, Section] = {}
    at: dict[tuple[str, str], str] = {}
    for page, found in help_pages(packages, "en"):
        for number, section in enumerate(found):
            if section.title and len(section.text) >= SHORTEST_SECTION:
                key = f"{page}#{number}"
                sections[key] = section
                at.update({(page, anchor): key for anchor in section.anchors})
    check_count("libreoffice-help-en-us", "sections", len(sections), HELP_SECTIONS)
    judged = _index_entries(packages, at)
    check_count("libreoffice-help-en-us", "index entries with a section", len(judged), HELP_QUERIES)
    fitting = sorted((query for query in judged if len(judged[query]) <= MOST_RELEVANT), key=rank)
    chosen = fitting[: tier.help_queries]
    relevant = {key for query in chosen for key in judged[query]}
    corpus = _documents(sections, _with_others(sections, relevant, tier.help_sections), tier)
    queries = {f"q{number}": query for number, query in enumerate(sorted(chosen))}
    # queries that share a section go to the same side, so a test query never asks for a trained-on answer
    side = _split_by_section(queries, judged)
    qrels = {
        split: {key: sorted(judged[query]) for key, query in queries.items() if side[key] == split}
        for split in ("train", "test")
    }
    return _write(out, "libreoffice-help", corpus, queries, qrels, packages=HELP_PACKAGES, licence="MPL-2.0",
                  changes="sections of its pages as plain text, entries of its keyword index")  # fmt: skip


def _index_entries(packages: Packages, at: dict[tuple[str, str], str]) -> dict[str, set[str]]:
    """Entry of the keyword index -> the sections it points at."""
    path = packages.deb("libreoffice-help-en-us") / "usr/share/libreoffice/help/en-US/bookmarks.js"
    judged: dict[str, set[str]] = defaultdict(set)
    entry = re.compile(r'url:"en-US/text/([^"?]+)\.html\?[^"#]*#([^"]+)", app:"[^"]*", text:"((?:[^"\\]|\\.)*)"')
    for page, anchor, text in entry.findall(path.read_text(encoding="utf-8")):
        query = re.sub(r"\s+", " ", unescape(text).replace('\\"', '"').replace("--", " ")).strip()
        if (page, anchor) in at and len(query) >= 4:
            judged[query].add(at[page, anchor])
    return judged


def _split_by_section(queries: dict[str, str], judged: dict[str, set[str]]) -> dict[str, str]:
    """Query id -> split; connected components of queries that share a section stay together."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for key, query in queries.items():
        for section in judged[query]:
            parent[root(section)] = root(key)
    members: dict[str, list[str]] = defaultdict(list)
    for key in queries:
        members[root(key)].append(key)
    side, tested = {}, 0
    for component in sorted(members.values(), key=lambda keys: rank(queries[keys[0]])):
        test = len(component) <= 20 and tested + len(component) <= TEST_SHARE * len(queries)
        tested += len(component) if test else 0
        side.update(dict.fromkeys(component, "test" if test else "train"))
    return side


def build_bible(packages: Packages, out: Path, tier: Tier) -> list[Written]:
    """Topics of Nave's Topical Bible (queries) -> verses of the KJV; judgements of the tier's books only."""
    texts = verses(packages, "sword-text-kjv")
    found = topics(packages, list(texts), by_heading=tier.topic_headings)
    named, referred = TOPICS[tier.topic_headings]
    check_count("sword-dict-naves", "topics with a verse", len(found), named)
    check_count("sword-dict-naves", "judgements", sum(map(len, found.values())), referred)
    corpus = [{"_id": key, "title": "", "text": text} for key, text in texts.items()
              if not tier.bible_books or key.split(".")[0] in tier.bible_books]  # fmt: skip
    kept = {row["_id"] for row in corpus}
    fewest, most = tier.topic_verses
    judged = {topic: inside for topic, keys in found.items()
              if fewest <= len(inside := [key for key in keys if key in kept]) <= most}  # fmt: skip
    chosen = sorted(sorted(judged, key=rank)[: tier.topics])
    queries = {f"q{number}": _sentence(topic) for number, topic in enumerate(chosen)}
    qrels = {f"q{number}": judged[topic] for number, topic in enumerate(chosen)}
    return _write(out, "kjv-naves", corpus, queries, {"test": qrels}, packages=BIBLE_PACKAGES,
                  licence="public domain", changes="verses, topics, and their references to verses")  # fmt: skip


def _sentence(topic: str) -> str:
    """`AARON: Lineage of` -> `Aaron: Lineage of`."""
    name, separator, heading = topic.partition(": ")
    return f"{name.capitalize()}{separator}{heading}"


class _Index(HTMLParser):
    """Entries of a Sphinx general index: (term and sub-term, page, anchor)."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self.entries: list[tuple[str, str, str]] = []
        self.link: str | None = None
        self.table = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.table = self.table or values.get("class") == "indextable"
        if self.table and tag == "li":
            self.path.append("")
        elif self.table and tag == "a" and self.path:
            self.link = values.get("href")

    def handle_endtag(self, tag: str) -> None:
        if tag == "li" and self.path:
            self.path.pop()
        elif tag == "a":
            self.link = None

    def handle_data(self, data: str) -> None:
        if not self.table or not self.path or not data.strip(" ,\n"):
            return
        if not re.fullmatch(r"\[\d+\]", data.strip()) and not self.path[-1]:
            self.path[-1] = re.sub(r"\s+", " ", data).strip()
        if self.link and "#" in self.link:
            page, _, anchor = self.link.partition("#")
            self.entries.append((" ".join(filter(None, self.path)), page, anchor))


def build_python(packages: Packages, out: Path, tier: Tier) -> list[Written]:
    """Concepts of the manual's general index (queries) -> sections of its pages."""
    root = packages.deb("python3.11-doc") / "usr/share/doc/python3.11/html"
    parser = _Index()
    for path in sorted(root.glob("genindex-*.html")):
        if path.name != "genindex-all.html":
            parser.feed(path.read_text(encoding="utf-8"))
    sections: dict[str, Section] = {}
    at: dict[tuple[str, str], str] = {}
    # Debian compresses the change log and links to it: no page, and no loss, since it defines no concept
    for page in sorted({page for _, page, _ in parser.entries} - {"whatsnew/changelog.html"}):
        for number, section in enumerate(
            read_sections((root / page).read_text(encoding="utf-8"), start=("class", "body"), drop={"sphinxsidebar"})
        ):
            key = f"{page.removesuffix('.html')}#{number}"
            if section.title and len(section.text) >= SHORTEST_SECTION:
                sections[key] = section
                at.update({(page, anchor): key for anchor in section.anchors})
    check_count("python3.11-doc", "sections", len(sections), PYTHON_SECTIONS)
    judged: dict[str, set[str]] = defaultdict(set)
    for term, page, anchor in parser.entries:
        concept = re.fullmatch(r"index-\d+", anchor) and re.match(r"[A-Za-z]{3}", term)
        if concept and (page, anchor) in at and not re.search(r"\b(PEP|RFC) \d", term):
            judged[re.sub(r"^\((.*)\)$", r"\1", term)].add(at[page, anchor])
    check_count("python3.11-doc", "index terms with a section", len(judged), PYTHON_QUERIES)
    fitting = sorted((term for term in judged if len(judged[term]) <= 8), key=rank)
    chosen = sorted(fitting[: tier.python_queries])
    relevant = {key for term in chosen for key in judged[term]}
    corpus = _documents(sections, _with_others(sections, relevant, tier.python_sections), tier)
    queries = {f"q{number}": term for number, term in enumerate(chosen)}
    qrels = {f"q{number}": sorted(judged[term]) for number, term in enumerate(chosen)}
    return _write(out, "python-doc", corpus, queries, {"test": qrels}, packages=PYTHON_PACKAGES,
                  licence="PSF-2.0", changes="sections as plain text, terms of the general index")  # fmt: skip
