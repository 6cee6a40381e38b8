"""Stage train_text_tokenizer: BPE merges learned from the corpus, and what they achieve on held-out text."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from accordion.config.data import TextTokenizerConfig
from accordion.data.tokenizers.text import ALPHABET, SPECIAL_NAMES, TextTokenizer, split_words, to_characters
from accordion.errors import DataError
from accordion.observe import progress, say

SPACELESS = {"bo", "dz", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh"}  # written without spaces between words


def train_text_tokenizer(config: TextTokenizerConfig, *, out: Path, corpus: Path) -> dict[str, Any]:
    """Learn the vocabulary on the training text of `corpus` and write `tokenizer.json` into `out`.

    Returns:
        for held-out text: fertility (all, and by language), and encoding speed.
    """
    texts = corpus_texts(corpus, "train")
    if not texts:
        raise DataError(f"{corpus}: no training text; check text.parquet")
    tokenizer = fit(config, texts)
    tokenizer.save(out)
    say(f"text tokenizer: {tokenizer.vocabulary} tokens from {len(texts)} texts")
    return {"vocabulary": tokenizer.vocabulary, "texts": len(texts), **measure(tokenizer, corpus)}


def corpus_texts(corpus: Path, split: str) -> list[str]:
    """The texts, captions and transcripts of one split."""
    found: list[str] = []
    for name, column in (("text", "text"), ("images", "caption"), ("audio", "transcript"), ("video", "caption")):
        path = corpus / f"{name}.parquet"
        if path.is_file():
            table = pd.read_parquet(path, columns=[column, "split"])
            found += [text for text in table.loc[table["split"] == split, column] if text]
    return found


def fit(config: TextTokenizerConfig, texts: list[str]) -> TextTokenizer:
    """Learn `config.vocabulary` tokens (fewer if the texts hold fewer pairs) from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=list(SPECIAL_NAMES),
        initial_alphabet=list(ALPHABET),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_words(texts), trainer, length=len(texts))
    return TextTokenizer(tokenizer)


def _words(texts: list[str]) -> Iterator[str]:
    written: dict[str, str] = {}
    for text in progress(texts, "text tokenizer", unit="texts"):
        words = split_words(text)
        for word in set(words):  # no difference of sets: that would go through all words known so far
            if word not in written:
                written[word] = to_characters(word)
        yield " ".join([written[word] for word in words])


def measure(tokenizer: TextTokenizer, corpus: Path) -> dict[str, Any]:
    """Fertility on held-out text, all and by language, and tokens a second once the words are known."""
    table = pd.read_parquet(corpus / "text.parquet", columns=["text", "language", "split"])
    held_out = table[table["split"] == "val"]
    if held_out.empty:
        raise DataError(f"{corpus}/text.parquet: no validation text; raise ingest.validation_share")
    by_language = {
        str(language): fertility(list(texts), tokenizer.encode_batch(texts), str(language))
        for language, texts in held_out.groupby("language")["text"]
    }
    texts = list(held_out["text"])
    start = time.perf_counter()
    encoded = tokenizer.encode_batch(texts)
    seconds = time.perf_counter() - start
    whole = fertility(texts, encoded)
    tokens = sum(map(len, encoded))
    return {
        "characters_per_token": whole["characters_per_token"],
        "bytes_per_token": whole["bytes_per_token"],
        "characters_per_token_by_language": {
            language: figures["characters_per_token"] for language, figures in by_language.items()
        },
        "tokens_per_word_by_language": {
            language: figures["tokens_per_word"]
            for language, figures in by_language.items()
            if "tokens_per_word" in figures
        },
        "tokens": tokens,
        "speed": {"tokens_per_second": tokens / seconds},
    }


def fertility(texts: Sequence[str], encoded: Iterable[Sequence[int]], language: str | None = None) -> dict[str, float]:
    """How much text a token carries.

    Args:
        encoded: the ids of each text.
        language: of all the texts, as a BCP 47 code; None: mixed.

    Returns:
        characters and UTF-8 bytes per token; tokens per word (between white space) where `language` writes spaces.
    """
    tokens = sum(len(ids) for ids in encoded)
    if not tokens:
        raise DataError(f"fertility: {len(texts)} texts without a token; give text that is not empty")
    figures = {
        "characters_per_token": sum(map(len, texts)) / tokens,
        "bytes_per_token": sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) / tokens,
    }
    words = sum(len(text.split()) for text in texts)
    if language is not None and language.split("-")[0] not in SPACELESS and words:
        figures["tokens_per_word"] = tokens / words
    return figures
