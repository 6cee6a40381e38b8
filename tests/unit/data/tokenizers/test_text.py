"""Text tokenizer: exact round trip of any string, control ids, digits, dropout, speed of the fast path."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accordion.config.data import TextTokenizerConfig
from accordion.data.tokenizers.text import SPECIAL, SPECIAL_NAMES, SPLIT, Dropout, TextTokenizer, split_words
from accordion.data.tokenizers.text_training import fit
from accordion.errors import ArtifactError, DataError

TEXTS = [
    "The printer prints the printed page, and the page is printed again. 10 pages of 250.",
    "Il y a des mots français: été, naïve, cœur. La mémoire de la maison.",
    "Принтер печатает страницу, и страница напечатана.",
    "打印机打印页面。页面已经打印。一一二三",
] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("text")
    fit(TextTokenizerConfig(vocabulary=600), TEXTS).save(folder)
    return TextTokenizer.load(folder)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_every_string_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, dropout=Dropout(0.5, seed=1))) == text
    assert "".join(split_words(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00",
        "a\x00b",
        "\ud800",
        "\udc00\ud800",
        "\ud800" * 32 + "\udc00",
        "\ud83d\ude00",
        "😀",
        "👩‍👩‍👧",
        "e\u0301",
        "\r\n\t ",
        "<bos><pad>",
        "㱰慤㸀",
    ],
)
def test_awkward_strings_come_back_without_control_ids(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(index >= SPECIAL or index == SPLIT for index in ids)


def test_two_surrogates_and_their_pair_differ(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("\ud83d\ude00") != tokenizer.encode("😀")


def test_every_digit_is_one_token_of_its_own(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("9876543210")
    assert len(ids) == 10
    assert [tokenizer.decode([index]) for index in ids] == list("9876543210")
    assert len(tokenizer.encode("7+15=22")) == 7


def test_merges_compress_and_stay_inside_words(tokenizer: TextTokenizer) -> None:
    text = TEXTS[0]
    ids = tokenizer.encode(text)
    assert len(ids) < len(text) * 0.6
    pieces = [tokenizer.decode([index]) for index in ids]
    assert all(" " not in piece[1:] for piece in pieces)


def test_dropout_is_reproducible_and_changes_the_segmentation(tokenizer: TextTokenizer) -> None:
    text = " ".join(TEXTS)
    first, second = (tokenizer.encode(text, dropout=Dropout(0.3, seed=5)) for _ in range(2))
    assert first == second
    assert len(first) > len(tokenizer.encode(text))
    assert tokenizer.encode(text, dropout=Dropout(0.0, seed=5)) == tokenizer.encode(text)


def test_control_tokens_vanish_and_half_units_are_marked(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode([1, *tokenizer.encode("ok"), 2]) == "ok"
    half = tokenizer.encode("\u4e8c")[:1]
    assert tokenizer.decode(half) in ("\ufffd", "\u4e8c")
    with pytest.raises(DataError, match="outside the vocabulary"):
        tokenizer.decode([tokenizer.vocabulary])
    with pytest.raises(DataError, match="wants a string"):
        tokenizer.encode(b"bytes")  # type: ignore[arg-type]


def test_a_missing_or_foreign_file_is_refused(tmp_path) -> None:
    with pytest.raises(ArtifactError, match="train_text_tokenizer"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": []}')
    with pytest.raises(ArtifactError, match="control tokens"):
        TextTokenizer.load(tmp_path)


def test_special_names_fill_the_reserved_ids() -> None:
    assert len(SPECIAL_NAMES) == len(set(SPECIAL_NAMES)) == SPECIAL


def test_a_server_can_use_it_without_torch() -> None:
    code = "import sys, accordion.data.tokenizers.text; sys.exit(bool({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
