"""Reading collections: what is read, and how each broken record is named."""

import pytest

from accordion.errors import DataError
from accordion.retrieval.beir import read_collection
from tests.unit.retrieval.conftest import write_domain


@pytest.fixture
def folder(tmp_path):
    write_domain(tmp_path / "domain", splits={"test": range(3)})
    return tmp_path / "domain"


def test_only_judged_queries_are_read_and_titles_are_part_of_the_text(folder):
    collection = read_collection(folder, "test")
    assert list(collection.queries) == ["q0", "q1", "q2"]
    assert collection.documents["d0"] == "How to open To open the apple, first take the apple away."
    assert collection.qrels["q1"] == {"d1": 1}


@pytest.mark.parametrize(
    "file, line, words",
    [
        ("corpus.jsonl", b'{"_id": "d0", "text": "again"}', "corpus.jsonl:71: document id 'd0' occurs twice"),
        ("corpus.jsonl", b'{"_id": "x"}', "wants an object with a string 'text'"),
        ("corpus.jsonl", b'{"_id": 5, "text": "t"}', "string '_id'"),
        ("corpus.jsonl", b'{"_id": "", "text": "t"}', "empty"),
        ("corpus.jsonl", b'{"_id": "x", "text": "\xff"}', "corpus.jsonl:71: not a JSON record"),
        ("queries.jsonl", b"{", "queries.jsonl:71: not a JSON record"),
        ("queries.jsonl", b"[1]", "wants an object"),
        ("qrels/test.tsv", b"q0\td0", "test.tsv:5: got"),
        ("qrels/test.tsv", b"q0\td0\thigh", "whole-number"),
        ("qrels/test.tsv", b"q99\td0\t1", "query 'q99' is not in queries.jsonl"),
        ("qrels/test.tsv", b"q0\td99\t1", "document 'd99' is not in corpus.jsonl"),
        ("qrels/test.tsv", b"q5\td5\t0", "query 'q5' has no relevant document"),
    ],
)
def test_a_broken_record_is_named(folder, file, line, words):
    with open(folder / file, "ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(DataError, match=words):
        read_collection(folder, "test")


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_or_empty_file_is_named(folder, file):
    (folder / file).write_text("")
    with pytest.raises(DataError):
        read_collection(folder, "test")
    (folder / file).unlink()
    with pytest.raises(DataError, match="no such file"):
        read_collection(folder, "test")
