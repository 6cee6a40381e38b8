"""Text tokenizer: byte-level BPE over UTF-16BE code units, exact for any Python string.

A string is cut into words (letters with their leading space, single digits, runs of punctuation or
white space); each word is BPE-encoded over its UTF-16BE code units, so no merge crosses a word, and bytes of
code units are the fallback for any string. Light on purpose: the standard library and `tokenizers`, so that
a server can use it.
"""

import json
import random
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

from accordion.errors import ArtifactError, DataError

PAD, BOS, EOS, BOI, EOI, BOV, EOV, BOA, EOA, MASK, SEP, USER, ASSISTANT = range(13)
SPLIT = 13  # between a high and a low surrogate that are two characters of the string and not a pair
SPECIAL = 16  # ids below this are reserved
SPECIAL_NAMES = (
    "<pad>", "<bos>", "<eos>", "<boi>", "<eoi>", "<bov>", "<eov>", "<boa>", "<eoa>", "<mask>", "<sep>",
    "<user>", "<assistant>", "<split>", "<reserved-14>", "<reserved-15>",
)  # fmt: skip
FILE = "tokenizer.json"
_CACHE_WORDS = 1 << 17
_VARIANTS = 8  # BPE-dropout samples kept for each distinct word


# The base alphabet. A byte b of a code unit is written U+0100+b; an ASCII code unit (00 XX) is one base
# token written as itself (space, tab and newline as their control pictures), so every digit is a token.
_UNITS = {chr(code): chr(code) for code in range(0x21, 0x7F)} | {" ": "\u2420", "\t": "\u2409", "\n": "\u240a"}
ALPHABET = (*(chr(0x100 + byte) for byte in range(256)), *_UNITS.values())
_BYTES = {chr(0x100 + byte): bytes([byte]) for byte in range(256)} | {
    written: unit.encode("utf-16-be") for unit, written in _UNITS.items()
}


def _word_pattern() -> re.Pattern[str]:
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code))[0] == "M")
    letter = f"(?:[^\\W\\d_]|[{marks}])"  # combining marks belong to their word (Hindi, Thai, Arabic)
    other = f"[^\\s\\w\ud800-\udfff{marks}]"
    return re.compile(
        rf"\d| ?{letter}{{1,64}}| ?{other}{{1,32}}|_{{1,32}}|[\ud800-\udfff]+|\s{{1,64}}(?!\S)|\s|.", re.DOTALL
    )


_WORD = _word_pattern()


def split_words(text: str) -> list[str]:
    """Cut `text` into the words that merges never cross; their concatenation is `text`."""
    return _WORD.findall(text)


def to_characters(word: str) -> str:
    """`word` in the base alphabet: an ASCII code unit is one character, any other code unit two."""
    return "".join(_UNITS.get(character) or _bytes_of(character) for character in word)


def _bytes_of(character: str) -> str:
    return "".join(chr(0x100 + byte) for byte in character.encode("utf-16-be", "surrogatepass"))


class Dropout:
    """BPE-dropout (Provilkov et al., arXiv 1910.13267, section 3.1) with a random generator of its own.

    Each merge is skipped with `probability` whenever it could be applied. A distinct word keeps at most
    eight sampled segmentations, and later occurrences draw among them, which bounds the cost.
    """

    def __init__(self, probability: float, seed: int) -> None:
        self.probability = probability
        self.random = random.Random(seed)
        self.variants: dict[str, list[list[int]]] = {}


class TextTokenizer:
    """Encodes strings to ids and back. Ids below `SPECIAL` are control tokens and never come from text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._model = tokenizer.model
        self.vocabulary: int = tokenizer.get_vocab_size()
        self._cache: dict[str, list[int]] = {}
        self._bytes: list[bytes] = [b""] * self.vocabulary
        for token, index in tokenizer.get_vocab().items():
            if index >= SPECIAL:
                self._bytes[index] = b"".join(_BYTES[character] for character in token)
        self._ranks: dict[tuple[str, str], int] | None = None

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer":
        """Read `tokenizer.json` of `folder`.

        Raises:
            ArtifactError: it is missing, unreadable, or not one of ours.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; run the stage train_text_tokenizer, or give its output folder")
        try:
            text = path.read_text()
            special = {entry["content"]: entry["id"] for entry in json.loads(text)["added_tokens"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: not a readable tokenizer ({error}); run train_text_tokenizer again") from None
        if special != {name: index for index, name in enumerate(SPECIAL_NAMES)}:
            raise ArtifactError(f"{path}: its control tokens are not Accordion's; run train_text_tokenizer again")
        return cls(Tokenizer.from_str(text))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` (the Hugging Face layout) into `folder`."""
        self._tokenizer.save(str(Path(folder) / FILE))

    def encode(self, text: str, *, dropout: Dropout | None = None) -> list[int]:
        """The ids of `text`, without control tokens. With `dropout` the segmentation is sampled (training only)."""
        if not isinstance(text, str):
            raise DataError(f"text: got {type(text).__name__}; wants a string")
        words = _WORD.findall(text)
        ids: list[int] = []
        if dropout is not None:
            for word in words:
                ids += self._sample_word(word, dropout)
            return ids
        known = self._cache.get
        for word in words:
            found = known(word)
            ids += self._encode_word(word) if found is None else found
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The string of `ids`; control tokens vanish.

        Exact for what `encode` gave. Ids in another order (a sampled sequence) may end in half a code
        unit, which reads as U+FFFD.
        """
        parts: list[bytearray] = [bytearray()]
        for index in ids:
            if index == SPLIT:
                parts.append(bytearray())
            elif 0 <= index < self.vocabulary:
                parts[-1] += self._bytes[index]
            else:
                raise DataError(f"token {index}: outside the vocabulary of {self.vocabulary}")
        return "".join(_decode_utf16(bytes(part)) for part in parts)

    def _encode_word(self, word: str) -> list[int]:
        if len(word) > 1 and "\ud800" <= word[0] <= "\udfff":
            ids = [token.id for token in self._model.tokenize(to_characters(word[0]))]
            for before, after in pairwise(word):
                if before <= "\udbff" < after:
                    ids.append(SPLIT)
                ids += [token.id for token in self._model.tokenize(to_characters(after))]
        else:
            ids = [token.id for token in self._model.tokenize(to_characters(word))]
        if len(self._cache) >= _CACHE_WORDS:
            self._cache.clear()
        self._cache[word] = ids
        return ids

    def _sample_word(self, word: str, dropout: Dropout) -> list[int]:
        if "\ud800" <= word[0] <= "\udfff" or len(word) == 1:
            return self._cache.get(word) or self._encode_word(word)
        variants = dropout.variants.setdefault(word, [])
        if len(variants) < _VARIANTS:
            variants.append(self._merge_with_dropout(to_characters(word), dropout))
            return variants[-1]
        return variants[int(dropout.random.random() * _VARIANTS)]

    def _merge_with_dropout(self, characters: str, dropout: Dropout) -> list[int]:
        if self._ranks is None:
            merges = json.loads(self._tokenizer.to_str())["model"]["merges"]
            self._ranks = {(left, right): rank for rank, (left, right) in enumerate(merges)}
        ranks, chance, p = self._ranks, dropout.random.random, dropout.probability
        pieces = list(characters)
        while len(pieces) > 1:
            best, at = len(ranks), -1
            for i in range(len(pieces) - 1):
                rank = ranks.get((pieces[i], pieces[i + 1]), best)
                if rank < best and chance() >= p:
                    best, at = rank, i
            if at < 0:
                break
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return [self._model.token_to_id(piece) for piece in pieces]


def _decode_utf16(data: bytes) -> str:
    whole = len(data) - len(data) % 2
    return data[:whole].decode("utf-16-be", "surrogatepass") + ("\ufffd" if len(data) % 2 else "")
