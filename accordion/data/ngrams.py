"""Texts as hashed tokens and n-grams: what near duplicates and leaked passages are found by, in any script.

A token is a word, or one character of a script that writes no spaces (Chinese, Japanese, Thai, Lao, Burmese,
Khmer). Case, punctuation, width and composition of letters do not count.
"""

import hashlib
import re
import unicodedata

import numpy as np

UNSPACED = (
    "\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han, kana
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
)
MARKS = "\u0300-\u036f\u064b-\u065f\u0900-\u0dff"  # vowel signs, which are part of a word
TOKEN = re.compile(f"[{UNSPACED}]|(?:[^\\W_{UNSPACED}]|[{MARKS}])+")
ONE = re.compile(f"[{UNSPACED}]")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication modulo 2^64 loses nothing
MOST_CACHED = 1_000_000  # distinct tokens whose hashes are kept at hand


class _Hashes(dict[str, int]):
    """Token -> 64-bit hash whose lowest bit tells a character of an unspaced script; bounded in size."""

    def __missing__(self, token: str) -> int:
        if len(self) >= MOST_CACHED:
            self.clear()
        digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[token] = found = int.from_bytes(digest, "little") >> 1 << 1 | (ONE.match(token) is not None)
        return found


_HASHES = _Hashes()


def tokens(text: str) -> np.ndarray:
    """Hash of each token, (n,) uint64; the lowest bit is set for a character of an unspaced script."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return np.array([_HASHES[token] for token in TOKEN.findall(plain)], np.uint64)


def windows(hashes: np.ndarray, length: int) -> np.ndarray:
    """Hash of each run of `length` tokens, (n - length + 1,) uint64; empty where there are fewer."""
    count = len(hashes) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    found = np.zeros(count, np.uint64)
    for offset in range(length):  # a polynomial modulo 2^64
        found = found * FACTOR + hashes[offset : offset + count]
    return found


def shingles(hashes: np.ndarray, length: int) -> np.ndarray:
    """The set of n-grams of a text's tokens as sorted hashes; a text of fewer tokens is one n-gram."""
    return np.unique(windows(hashes, min(length, max(len(hashes), 1))))


def content_hash(value: str | bytes) -> int:
    """64-bit hash of a content: bytes as they are; text without regard to case, width and spaces."""
    if isinstance(value, str):
        value = " ".join(unicodedata.normalize("NFKC", value).casefold().split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")
