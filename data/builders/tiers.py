"""The two tiers: what each takes of the packages. `full` takes all there is, `sample` is a selection of it."""

from dataclasses import dataclass

EIGHT = ("en", "de", "fr", "es", "it", "ru", "ja", "zh")


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Budgets of one tier; None: no bound, the whole package is taken.

    Attributes:
        limit_bytes: the build fails above it.
        emoji: pictures, of those with a name in every one of `caption_languages` and without a skin tone.
        emoji_side: pixels of a picture; None: the size in the font (136).
        caption_languages: of the names; None: every locale of the package.
        speech_bytes: GSM bytes over all languages, of prompts spoken in all of them within `speech_seconds`.
        film_size: (width, height) that one film is scaled to; None: every film, its bytes unchanged.
        help_characters: (language, characters of help pages).
        page_characters: shortest and longest page of the help.
        one_file_per_language: text/XX.jsonl.gz of help and declaration; otherwise a file for each source.
        faq_characters: longest answer; None also takes sections that lack some languages.
        words: headwords of each dictionary.
        section_characters: longest text of a retrieval document.
        topic_headings: every heading of an article is a topic; otherwise the article is one.
        topic_verses: fewest and most verses of a topic.
        help_queries, help_sections, bible_books, topics, python_queries, python_sections: of the collections.
    """

    name: str
    limit_bytes: int | None = None
    emoji: int | None = None
    emoji_side: int | None = None
    caption_languages: tuple[str, ...] | None = None
    speech_bytes: int | None = None
    speech_seconds: tuple[float, float] = (0.1, 60.0)
    film_size: tuple[int, int] | None = None
    help_characters: tuple[tuple[str, int], ...] | None = None
    page_characters: tuple[int, int] = (60, 100_000)
    one_file_per_language: bool = False
    faq_languages: tuple[str, ...] = ("en", "de", "fr", "it", "ja", "ko", "nl", "pt", "ru", "zh")
    faq_characters: int | None = None
    dictionaries: tuple[str, ...] = ("fr", "es", "it", "nl", "pt", "ru")
    words: int | None = None
    section_characters: int | None = None
    help_queries: int | None = None
    help_sections: int | None = None
    bible_books: tuple[str, ...] | None = None
    topics: int | None = None
    topic_headings: bool = True
    topic_verses: tuple[int, int] = (1, 100_000)
    python_queries: int | None = None
    python_sections: int | None = None


FULL = Tier(name="full")
SAMPLE = Tier(
    name="sample",
    limit_bytes=5_000_000,
    emoji=450,
    emoji_side=32,
    caption_languages=EIGHT,
    speech_bytes=1_300_000,
    speech_seconds=(0.8, 6.0),
    film_size=(192, 108),
    help_characters=(  # unequal, so that the gzip sizes are equal
        ("en", 480_000), ("de", 480_000), ("fr", 480_000), ("es", 480_000), ("it", 480_000),
        ("ja", 260_000), ("zh", 200_000), ("ru", 380_000),
    ),
    page_characters=(300, 12_000),
    one_file_per_language=True,
    faq_languages=("en", "de", "fr", "it", "ja", "nl", "ru"),
    faq_characters=900,
    dictionaries=("fr", "es", "it", "nl"),
    words=2500,
    section_characters=1200,
    help_queries=2000,
    help_sections=2500,
    bible_books=("Prov", "Rom", "Eph", "Jas"),  # 1,611 verses
    topics=250,
    topic_headings=False,
    topic_verses=(2, 40),
    python_queries=300,
    python_sections=800,
)  # fmt: skip
TIERS = {tier.name: tier for tier in (SAMPLE, FULL)}
