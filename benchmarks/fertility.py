"""Fertility at the full tier: our vocabularies, learned from all of its text, beside published tokenizers.

Characters a token and tokens a word by language, and how many texts come back exactly. `in domain` is held-out text of
the sources that ours learned from, at most `MOST` characters of each language that has at least `LEAST`; `other domain`
is the FAQ. The tier is split by group as ingest does, but near copies are not taken out.
"""

from itertools import accumulate

from accordion.data.tier import STAMP, full_tier
from accordion.errors import DataError
from accordion.observe import say
from benchmarks.harness import Row, Sheet
from benchmarks.text_tokenizer import Data, Texts, read, sheets

REPEATS = 1  # nothing here depends on time
VOCABULARIES = (8192, 32_768)
LEAST, MOST = 50_000, 150_000  # held-out characters of a language


def run(repeats: int) -> list[Row | Sheet]:
    """Measure on the tier that `make data` built.

    Raises:
        DataError: it has not been built.
    """
    folder = full_tier()
    if not (folder / STAMP).is_file():
        raise DataError(f"{folder} has not been built; run `make data` first")
    data = read(folder)
    say(f"fertility: {len(data.train):,} training texts of {sum(map(len, data.train)):,} characters")
    return sheets(Data(data.train, bounded(data.in_domain, LEAST, MOST), data.other_domain), VOCABULARIES)


def bounded(texts: Texts, least: int, most: int) -> Texts:
    """Of each language with at least `least` characters the first texts, up to about `most` characters."""
    found = {}
    for language, held in texts.items():
        if sum(map(len, held)) >= least:
            starts = accumulate(map(len, held), initial=0)
            found[language] = [text for text, start in zip(held, starts, strict=False) if start < most]
    return found
