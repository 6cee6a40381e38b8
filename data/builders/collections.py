"""Retrieval collections in the BEIR layout: LibreOffice help, KJV with Nave's topics, the Python manual."""

import re
from collections import defaultdict
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

from builders.html import Section, read_sections
from builders.packages import Packages
from builders.sword import topics, verses
from builders.text import help_pages
from builders.write import json_lines, rank, write_gzip

HELP_QUERIES = 2000
HELP_SECTIONS = 2500
TEST_SHARE = 0.3
BIBLE_BOOKS = ("Prov", "Rom", "Eph", "Jas")  # 1,611 verses
BIBLE_TOPICS = 250
PYTHON_QUERIES = 300
PYTHON_SECTIONS = 800
SECTION_CHARACTERS = (40, 1200)


def _write(
    out: Path, corpus: list[dict[str, str]], queries: dict[str, str], qrels: dict[str, dict[str, list[str]]]
) -> None:
    """Write one domain. qrels: split -> query id -> relevant document ids."""
    known = {row["_id"] for row in corpus}
    assert all(document in known for split in qrels.values() for found in split.values() for document in found)
    write_gzip(out / "corpus.jsonl.gz", json_lines(corpus))
    write_gzip(out / "queries.jsonl.gz", json_lines({"_id": key, "text": text} for key, text in queries.items()))
    for split, judgements in qrels.items():
        lines = [f"{query}\t{document}\t1\n" for query, found in judgements.items() for document in found]
        path = out / f"qrels/{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))


def _cut(text: str) -> str:
    """At most SECTION_CHARACTERS[1] characters of a section, cut at a space."""
    text = text.replace("\n", " ")
    return text if len(text) <= SECTION_CHARACTERS[1] else text[: SECTION_CHARACTERS[1]].rsplit(" ", 1)[0]


def build_help(packages: Packages, out: Path) -> None:
    """Keyword index entries (queries) -> the page sections they point at; train and test queries disjoint."""
    sections: dict[str, Section] = {}
    at: dict[tuple[str, str], str] = {}
    for page, found in help_pages(packages, "en"):
        for number, section in enumerate(found):
            if section.title and len(section.text) >= SECTION_CHARACTERS[0]:
                key = f"{page}#{number}"
                sections[key] = section
                at.update({(page, anchor): key for anchor in section.anchors})
    root = packages.deb("libreoffice-help-en-us") / "usr/share/libreoffice/help/en-US/bookmarks.js"
    judged: dict[str, set[str]] = defaultdict(set)
    entry = re.compile(r'url:"en-US/text/([^"?]+)\.html\?[^"#]*#([^"]+)", app:"[^"]*", text:"((?:[^"\\]|\\.)*)"')
    for page, anchor, text in entry.findall(root.read_text(encoding="utf-8")):
        query = re.sub(r"\s+", " ", unescape(text).replace('\\"', '"').replace("--", " ")).strip()
        if (page, anchor) in at and len(query) >= 4:
            judged[query].add(at[page, anchor])
    if len(judged) < 4000:
        raise SystemExit(f"libreoffice-help: {len(judged)} index entries with a section, expected about 6,000")
    chosen = sorted((query for query in judged if len(judged[query]) <= 10), key=rank)[:HELP_QUERIES]
    relevant = {key for query in chosen for key in judged[query]}
    others = sorted(set(sections) - relevant, key=rank)[: max(0, HELP_SECTIONS - len(relevant))]
    # a query judged in full keeps every section it points at; the other sections make the search harder
    corpus = [{"_id": key, "title": sections[key].title, "text": _cut(sections[key].text)}
              for key in sorted(relevant | set(others))]  # fmt: skip
    queries = {f"q{number}": query for number, query in enumerate(sorted(chosen))}
    # queries that share a section go to the same side, so a test query never asks for a trained-on answer
    side = _split_by_section(queries, judged)
    qrels = {
        split: {key: sorted(judged[query]) for key, query in queries.items() if side[key] == split}
        for split in ("train", "test")
    }
    _write(out / "retrieval/libreoffice-help", corpus, queries, qrels)


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


def build_bible(packages: Packages, out: Path) -> None:
    """Topics of Nave's Topical Bible (queries) -> verses of four books of the KJV; judgements of those only."""
    texts = verses(packages)
    corpus = [{"_id": key, "title": "", "text": text} for key, text in texts.items()
              if key.split(".")[0] in BIBLE_BOOKS]  # fmt: skip
    kept = {row["_id"] for row in corpus}
    judged = {topic: inside for topic, found in topics(packages, list(texts)).items()
              if 2 <= len(inside := [key for key in found if key in kept]) <= 40}  # fmt: skip
    chosen = sorted(sorted(judged, key=rank)[:BIBLE_TOPICS])
    queries = {f"q{number}": topic.capitalize() for number, topic in enumerate(chosen)}
    qrels = {f"q{number}": judged[topic] for number, topic in enumerate(chosen)}
    _write(out / "retrieval/kjv-naves", corpus, queries, {"test": qrels})


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


def build_python(packages: Packages, out: Path) -> None:
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
            if section.title and len(section.text) >= SECTION_CHARACTERS[0]:
                sections[key] = section
                at.update({(page, anchor): key for anchor in section.anchors})
    judged: dict[str, set[str]] = defaultdict(set)
    for term, page, anchor in parser.entries:
        concept = re.fullmatch(r"index-\d+", anchor) and re.match(r"[A-Za-z]{3}", term)
        if concept and (page, anchor) in at and not re.search(r"\b(PEP|RFC) \d", term):
            judged[re.sub(r"^\((.*)\)$", r"\1", term)].add(at[page, anchor])
    chosen = sorted(sorted((term for term in judged if len(judged[term]) <= 8), key=rank)[:PYTHON_QUERIES])
    if len(chosen) < PYTHON_QUERIES:
        raise SystemExit(f"python3.11-doc: {len(chosen)} index terms with a section, expected {PYTHON_QUERIES}")
    relevant = {key for term in chosen for key in judged[term]}
    others = sorted(set(sections) - relevant, key=rank)[: max(0, PYTHON_SECTIONS - len(relevant))]
    corpus = [{"_id": key, "title": sections[key].title, "text": _cut(sections[key].text)}
              for key in sorted(relevant | set(others))]  # fmt: skip
    queries = {f"q{number}": term for number, term in enumerate(chosen)}
    qrels = {f"q{number}": sorted(judged[term]) for number, term in enumerate(chosen)}
    _write(out / "retrieval/python-doc", corpus, queries, {"test": qrels})
