"""Text tokenizer: exact round trip of any string, ids as merges by hand give them, control ids, digits, dropout."""

import json
import random
import re
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accordion.config.data import TextTokenizerConfig
from accordion.data.tokenizers import text as text_module
from accordion.data.tokenizers import text_training
from accordion.data.tokenizers.text import (
    SPECIAL,
    SPECIAL_NAMES,
    SPLIT,
    Dropout,
    TextTokenizer,
    split_words,
    to_characters,
)
from accordion.data.tokenizers.text_training import fertility, fit
from accordion.errors import ArtifactError, DataError

TEXTS = [
    "The printer prints the printed page, and the page is printed again. 10 pages of 250.",
    "Il y a des mots français: été, naïve, cœur. La mémoire de la maison.",
    "Принтер печатает страницу, и страница напечатана.",
    "打印机打印页面。页面已经打印。一一二三",
] * 20
CHARACTERS = st.characters(exclude_categories=())  # every code point, surrogates too
SNIPPETS = st.sampled_from(
    [
        *TEXTS[:4], "\x00", " ", "\r\n", "\u00a0", "\u2028", "\ufeff", "\ufffe", "\U0010ffff", "_", "__init__", "42",
        "٤٢", "½", "السَّلَامُ عَلَيْكُمْ", "שָׁלוֹם עוֹלָם", "\u202eright to left\u202c", "नमस्ते दुनिया", "สวัสดีชาวโลก",
        "안녕하세요", "\u0301", "\u1112\u1161\u11ab", "e\u0301a\u0300\u0323",
        "Z" + "\u0311\u0369\u0343\u034f\u0334\u0319" * 9,
        "👩\u200d👩\u200d👧\u200d👦", "👋🏽", "🇫🇷🇯🇵", "🏴\U000e0067\U000e0062\U000e007f", "1\ufe0f\u20e3", "𝔸𝕓𐍈𠀀",
        "\ud83d", "\ude00",
    ]
)  # fmt: skip
RUNS = st.builds(lambda character, count: character * count, CHARACTERS, st.integers(1, 150))
STRINGS = st.one_of(
    st.text(alphabet=CHARACTERS),
    st.text(alphabet=st.characters(categories=("Cs",)), max_size=12),
    st.lists(st.one_of(SNIPPETS, SNIPPETS, RUNS, st.text(alphabet=CHARACTERS, max_size=4)), max_size=12).map("".join),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    fit(TextTokenizerConfig(vocabulary=600), TEXTS).save(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.load(folder)


@pytest.fixture(scope="module")
def by_hand(folder: Path):  # type: ignore[no-untyped-def]
    """Ids of a word: its base tokens, and then again and again the first pair of the lowest rank merged."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}

    def encode(word: str) -> list[int]:
        if len(word) > 1 and all("\ud800" <= unit <= "\udfff" for unit in word):
            ids = encode(word[0])
            for before, after in pairwise(word):
                ids += [SPLIT] * (before < "\udc00" <= after) + encode(after)
            return ids
        pieces = list(to_characters(word))
        while found := [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]:
            at = min(found)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return [model["vocab"][piece] for piece in pieces]

    return encode


@settings(max_examples=600, deadline=None)
@given(STRINGS)
def test_every_string_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "".join(split_words(text)) == text


@settings(max_examples=200, deadline=None)
@given(STRINGS, st.floats(0, 0.99), st.integers(0, 2**32))
def test_every_string_comes_back_under_dropout(
    tokenizer: TextTokenizer, text: str, probability: float, seed: int
) -> None:
    dropout = Dropout(probability, seed)
    assert [tokenizer.decode(tokenizer.encode(text, dropout=dropout)) for _ in range(2)] == [text, text]


@settings(max_examples=200, deadline=None)
@given(STRINGS)
def test_the_quick_way_gives_the_ids_of_merges_by_hand(folder: Path, by_hand, text: str) -> None:  # type: ignore[no-untyped-def]
    wanted = [index for word in split_words(text) for index in by_hand(word)]
    tokenizer = TextTokenizer.load(folder)
    cold, warm = tokenizer.encode(text), tokenizer.encode(text)
    assert cold == warm == wanted == tokenizer.encode(text, dropout=Dropout(0.0, seed=0))
    assert tokenizer.encode_batch([text, text]) == [wanted, wanted]


@settings(max_examples=200, deadline=None)
@given(STRINGS)
def test_words_are_cut_as_the_rule_says(text: str) -> None:
    """The pattern has a short cut for usual words; here is the rule without it."""
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M")
    letter, other = rf"(?:[^\W\d_]|[{marks}])", rf"[^\s\w\ud800-\udfff{marks}]"
    rule = rf" ?{letter}{{1,64}}|\d| ?{other}{{1,32}}|_{{1,32}}|[\ud800-\udfff]+|\s{{1,64}}(?!\S)|\s|."
    assert re.findall(rule, text, re.DOTALL) == split_words(text)


@settings(max_examples=30, deadline=None)
@given(STRINGS)
def test_saving_and_loading_changes_no_id(folder: Path, tokenizer: TextTokenizer, text: str) -> None:
    again = folder / "again"
    again.mkdir(exist_ok=True)
    tokenizer.save(again)
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert TextTokenizer.load(again).encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    "unit",
    ["a", "é", "中", "😀", "\u0301", "\ud800", "\ud800\udc00", "7", "-", " ", "\n", "_", "\x00", "ab-", "𠀀a"],
)
def test_a_million_characters_without_a_space_take_seconds_at_most(tokenizer: TextTokenizer, unit: str) -> None:
    text = unit * (10**6 // len(unit))
    start = time.process_time()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert time.process_time() - start < 20  # quadratic work would take hours
    part = text[: 20_000 // len(unit) * len(unit)]
    assert tokenizer.decode(tokenizer.encode(part, dropout=Dropout(0.1, seed=0))) == part


def test_a_long_line_of_ever_new_letters_is_linear_too(tokenizer: TextTokenizer) -> None:
    text = "".join(chr(0x4E00 + (i * i) % 20_000) for i in range(100_000))
    assert max(map(len, split_words(text))) <= 64
    start = time.process_time()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.process_time() - start < 20


def test_what_is_remembered_stays_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "_CACHE_WORDS", 100)
    monkeypatch.setattr(text_module, "_VARIANT_WORDS", 100)
    tokenizer, dropout = TextTokenizer.load(folder), Dropout(0.1, seed=0)
    text = " ".join(f"word{chr(0x61 + i % 26)}{chr(0x4E00 + i)}" for i in range(1000)) + "\ud800\ud801" * 500
    for _ in range(2):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, dropout=dropout)) == text
    assert len(tokenizer._words) <= 100 and len(dropout.variants) <= 100


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


def test_dropout_follows_its_distribution(tokenizer: TextTokenizer) -> None:
    """A word of three pieces: p^2 nothing merges; of the merges, the earlier rank is taken with (1 - p)."""
    vocabulary = tokenizer._tokenizer
    merges = json.loads(vocabulary.to_str())["model"]["merges"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    words = {a + b + c for a, b in ranks for b2, c in ranks if b == b2 and len(a) == len(b) == len(c) == 1}
    word = next(w for w in sorted(words) if (w[0] + w[1], w[2]) not in ranks and (w[0], w[1] + w[2]) not in ranks)
    first = ranks[word[0], word[1]] < ranks[word[1], word[2]]
    early, late = ((2, 1), (1, 2)) if first else ((1, 2), (2, 1))
    dropout, draws, p = Dropout(0.3, seed=3), 20_000, 0.3
    table = text_module._Merges(vocabulary)
    name = {index: token for token, index in vocabulary.get_vocab().items()}
    seen = Counter(
        tuple(len(name[index]) for index in table.apply(word, dropout.random.random, p)) for _ in range(draws)
    )
    wanted = {early: 1 - p, late: p * (1 - p), (1, 1, 1): p * p}
    assert set(seen) == set(wanted)
    for shape, share in wanted.items():
        assert abs(seen[shape] / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5


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


def test_fertility_counts_words_only_where_a_language_writes_spaces() -> None:
    assert fertility(["one two three"], [[1, 2, 3, 4, 5, 6]], "en") == {
        "characters_per_token": 13 / 6,
        "bytes_per_token": 13 / 6,
        "tokens_per_word": 2.0,
    }
    for language in ("zh", "zh-cn", None):
        assert fertility(["中文 字"], [[1, 2]], language) == {"characters_per_token": 2.0, "bytes_per_token": 5.0}
    with pytest.raises(DataError, match="without a token"):
        fertility([""], [[]], "en")


def test_reading_texts_takes_no_longer_with_every_word_already_known() -> None:
    draw = random.Random(0).choices
    texts = [" ".join("".join(draw("abcdefghij", k=7)) for _ in range(60)) for _ in range(6000)]  # 360,000 words
    clock = time.process_time()
    assert sum(1 for _ in text_training._words(texts)) == 6000
    assert time.process_time() - clock < 4  # half a second; going through all known words each time takes over a minute


def test_a_tokenizer_from_before_voices_is_read(tmp_path: Path) -> None:
    made = fit(TextTokenizerConfig(vocabulary=420), ["the cat"] * 5)
    made.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("<voice>", "<reserved-14>"))
    old = TextTokenizer.load(tmp_path)
    assert old.encode("the cat") == made.encode("the cat") and old.vocabulary == made.vocabulary
    path.write_text(path.read_text().replace("<reserved-14>", "<other>"))
    with pytest.raises(ArtifactError, match="control tokens are not Accordion's"):
        TextTokenizer.load(tmp_path)
