"""Text tokenizer: byte-level BPE over UTF-16BE code units, exact for any Python string.

A string is cut into words (letters with their leading space, single digits, runs of punctuation or
white space); each word is BPE-encoded over its UTF-16BE code units, so no merge crosses a word, and bytes of
code units are the fallback for any string. Light on purpose: the standard library and `tokenizers`, so that
a server can use it.

What is slow in Python is done once for each distinct thing: a character is written in the base alphabet once,
a word is merged once; a text is then one pass of the pattern and one look-up for each word.
"""

import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, pairwise
from pathlib import Path

from tokenizers import Tokenizer, models

from accordion.errors import ArtifactError, DataError

PAD, BOS, EOS, BOI, EOI, BOV, EOV, BOA, EOA, MASK, SEP, USER, ASSISTANT = range(13)
SPLIT = 13  # between a high and a low surrogate that are two characters of the string and not a pair
VOICE = 14  # before BOA: the voice that speaks, described by a vector at this position, or any voice
SPECIAL = 16  # ids below this are reserved
SPECIAL_NAMES = (
    "<pad>", "<bos>", "<eos>", "<boi>", "<eoi>", "<bov>", "<eov>", "<boa>", "<eoa>", "<mask>", "<sep>",
    "<user>", "<assistant>", "<split>", "<voice>", "<reserved-15>",
)  # fmt: skip
_FORMER = {"<reserved-14>": "<voice>"}  # names in the files of earlier versions
FILE = "tokenizer.json"
_CACHE_WORDS = 1 << 17
_LONGEST = 64  # characters of a word with merges; bounds the work for text without spaces
_VARIANTS = 8  # BPE-dropout samples kept for each distinct word
_VARIANT_WORDS = 1 << 15


# The base alphabet. A byte b of a code unit is written U+0100+b; an ASCII code unit (00 XX) is one base
# token written as itself (space, tab and newline as their control pictures), so every digit is a token.
_UNITS = {chr(code): chr(code) for code in range(0x21, 0x7F)} | {" ": "\u2420", "\t": "\u2409", "\n": "\u240a"}
ALPHABET = (*(chr(0x100 + byte) for byte in range(256)), *_UNITS.values())
_BYTES = {chr(0x100 + byte): bytes([byte]) for byte in range(256)} | {
    written: unit.encode("utf-16-be") for unit, written in _UNITS.items()
}


def _ranges(wanted: Callable[[str], bool]) -> str:
    """The characters of the basic plane for which `wanted` is true, as the inside of a character class."""
    codes = [code for code in range(0x10000) if wanted(chr(code))]
    starts = [code for before, code in pairwise([-2, *codes]) if code != before + 1]
    ends = [code for code, after in pairwise([*codes, 0x20000]) if after != code + 1]
    return "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in zip(starts, ends, strict=True))


def _word_pattern() -> re.Pattern[str]:
    def is_mark(character: str) -> bool:  # combining marks belong to their word (Hindi, Thai, Arabic)
        return unicodedata.category(character)[0] == "M"

    def is_letter(character: str) -> bool:
        return (character.isalnum() and not character.isdecimal()) or is_mark(character)

    marks = _ranges(is_mark)
    letter = rf"(?:[^\W\d_]|[{marks}])"
    # Nearly every word is a run of letters of the basic plane, which one table look-up for each character finds;
    # a run that goes on (with a letter of a higher plane, or beyond the longest) is left to the general form.
    usual = rf" ?[{_ranges(is_letter)}]{{1,{_LONGEST - 1}}}+(?!{letter})"
    other = rf"[^\s\w\ud800-\udfff{marks}]"
    return re.compile(
        rf"{usual}| ?{letter}{{1,{_LONGEST}}}|\d| ?{other}{{1,32}}|_{{1,32}}|[\ud800-\udfff]+"
        rf"|\s{{1,{_LONGEST}}}(?!\S)|\s|.",
        re.DOTALL,
    )


_WORD = _word_pattern()


def split_words(text: str) -> list[str]:
    """Cut `text` into the words that merges never cross; their concatenation is `text`."""
    return _WORD.findall(text)


class _Written(dict[int, str]):
    """Code point -> its base characters; filled as characters are met, for the basic plane only (65,536 at most)."""

    def __missing__(self, code: int) -> str:
        data = chr(code).encode("utf-16-be", "surrogatepass")
        written = "".join(chr(0x100 + byte) for byte in data)
        if code < 0x10000:
            self[code] = written
        return written


_WRITTEN = _Written({ord(unit): written for unit, written in _UNITS.items()})


def to_characters(word: str) -> str:
    """`word` in the base alphabet: an ASCII code unit is one character, any other code unit two."""
    if word.isascii() and word.isprintable():
        return word.replace(" ", _UNITS[" "])
    return word.translate(_WRITTEN)


class Dropout:
    """BPE-dropout (Provilkov et al., arXiv 1910.13267, section 3.1) with a random generator of its own.

    Each merge is skipped with `probability` whenever it could be applied. A distinct word keeps at most
    eight sampled segmentations, and later occurrences draw among them, which bounds the cost; all are forgotten
    when they belong to 32,768 words, which bounds the memory.
    """

    def __init__(self, probability: float, seed: int) -> None:
        self.probability = probability
        self.random = random.Random(seed)
        self.variants: dict[str, list[list[int]]] = {}

    def sample(self, word: str, merges: "_Merges") -> list[int]:
        """Ids of one segmentation of `word`."""
        variants = self.variants.get(word)
        if variants is None:
            if len(self.variants) >= _VARIANT_WORDS:
                self.variants.clear()
            variants = self.variants[word] = []
        if len(variants) < _VARIANTS:
            variants.append(merges.apply(to_characters(word), self.random.random, self.probability))
            return variants[-1]
        return variants[int(self.random.random() * _VARIANTS)]


class _Merges:
    """The merges of a BPE model, to apply them one by one with a chance of being dropped."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.get_vocab()
        merges: list[tuple[str, str]] = json.loads(tokenizer.to_str())["model"]["merges"]
        self.base = {token: index for token, index in ids.items() if len(token) == 1}
        self.ranks = {(ids[left], ids[right]): rank for rank, (left, right) in enumerate(merges)}
        self.merged = [ids[left + right] for left, right in merges]

    def apply(self, characters: str, chance: Callable[[], float], probability: float) -> list[int]:
        """Merge the pair of lowest rank again and again, each candidate dropped with `probability` at each step.

        A step draws for the candidates in the order of their ranks until one is kept, which is the same as
        drawing for all of them first; it ends the word when none is kept.
        """
        pieces = [self.base[character] for character in characters]
        rank, none = self.ranks.get, len(self.ranks)
        ranks = [rank(pair, none) for pair in pairwise(pieces)]  # of the pairs (0, 1), (1, 2), ...
        while ranks:
            lowest = min(ranks)
            if lowest == none:
                break
            at = ranks.index(lowest)
            if chance() < probability:
                others = sorted(range(len(ranks)), key=ranks.__getitem__)[1:]
                kept = (i for i in others if ranks[i] < none and chance() >= probability)
                at = next(kept, -1)
                if at < 0:
                    break
            pieces[at : at + 2] = [self.merged[ranks.pop(at)]]
            if at > 0:
                ranks[at - 1] = rank((pieces[at - 1], pieces[at]), none)
            if at < len(ranks):
                ranks[at] = rank((pieces[at], pieces[at + 1]), none)
        return pieces


class _Words(dict[str, tuple[int, ...]]):
    """Word -> its ids; a word is merged when it is first asked for. Emptied when it holds `_CACHE_WORDS` words."""

    def __init__(self, model: models.BPE) -> None:
        super().__init__()
        self._model = model
        model._resize_cache(0)  # a second cache below this one only costs: each word comes once

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(word) > 1 and "\ud800" <= word[0] <= "\udfff":
            return self._surrogates(word)
        ids = tuple([token.id for token in self._model.tokenize(to_characters(word))])
        if len(self) >= _CACHE_WORDS:
            self.clear()
        self[word] = ids
        return ids

    def _surrogates(self, word: str) -> tuple[int, ...]:
        """Ids of a run of lone surrogates of any length: `SPLIT` stands where two would read as a pair."""
        ids = [*self[word[0]]]
        for before, after in pairwise(word):
            if before <= "\udbff" < after:
                ids.append(SPLIT)
            ids += self[after]
        return tuple(ids)


class TextTokenizer:
    """Encodes strings to ids and back. Ids below `SPECIAL` are control tokens and never come from text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._model = tokenizer.model
        self.vocabulary: int = tokenizer.get_vocab_size()
        self._words = _Words(self._model)
        self._bytes: list[bytes] = [b""] * self.vocabulary
        for token, index in tokenizer.get_vocab().items():
            if index >= SPECIAL:
                self._bytes[index] = b"".join(_BYTES[character] for character in token)
        self._merges: _Merges | None = None  # made when dropout is first asked for

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
            added = json.loads(text)["added_tokens"]
            special = {_FORMER.get(entry["content"], entry["content"]): entry["id"] for entry in added}
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: not a readable tokenizer ({error}); run train_text_tokenizer again") from None
        if special != {name: index for index, name in enumerate(SPECIAL_NAMES)}:
            raise ArtifactError(f"{path}: its control tokens are not Accordion's; run train_text_tokenizer again")
        return cls(Tokenizer.from_str(text))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` (the Hugging Face layout) into `folder`."""
        self._tokenizer.save(str(Path(folder) / FILE))

    def tokens(self) -> list[bytes]:
        """Id -> the UTF-16BE bytes it stands for; empty for control tokens."""
        return list(self._bytes)

    def encode(self, text: str, *, dropout: Dropout | None = None) -> list[int]:
        """The ids of `text`, without control tokens. With `dropout` the segmentation is sampled (training only)."""
        if not isinstance(text, str):
            raise DataError(f"text: got {type(text).__name__}; wants a string")
        words = _WORD.findall(text)
        if dropout is not None:
            return [index for word in words for index in self._sample(word, dropout)]
        return list(chain.from_iterable(map(self._words.__getitem__, words)))

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

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each id adds to a text: its characters, those that do not print escaped, or its bytes as `<4e>`.

        Bytes are shown where a token begins or ends within a code unit.
        """
        found, within = [], False
        for index in ids:
            data = self._bytes[index]
            if index < SPECIAL:
                found.append(SPECIAL_NAMES[index])
            elif within or len(data) % 2:
                found.append(f"<{data.hex()}>")
                within ^= bool(len(data) % 2)
            else:
                text = data.decode("utf-16-be", "surrogatepass")
                found.append("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))
        return found

    def _sample(self, word: str, dropout: Dropout) -> Sequence[int]:
        if len(word) == 1 or "\ud800" <= word[0] <= "\udfff":
            return self._words[word]
        if self._merges is None:
            self._merges = _Merges(self._tokenizer)
        return dropout.sample(word, self._merges)


def _decode_utf16(data: bytes) -> str:
    whole = len(data) - len(data) % 2
    return data[:whole].decode("utf-16-be", "surrogatepass") + ("\ufffd" if len(data) % 2 else "")
