"""Near duplicates, leaked passages and languages: what is found, and what is left alone."""

import io
import random
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from accordion.config.data import DecontaminationConfig, DuplicatesConfig, LanguagesConfig
from accordion.data.decontamination import Decontamination
from accordion.data.duplicates import Duplicates
from accordion.data.languages import Languages, identify
from accordion.data.ngrams import content_hash, tokens
from accordion.errors import DataError
from tests import media

VERSE = "In the beginning the builders raised a tower of brick upon the wide plain near Shinar town"  # 17 words
JAPANESE = "吾輩は猫である名前はまだ無いどこで生れたか頓と見当がつかぬ何でも薄暗い所で泣いていた"


def cleaned(evaluation: str, training: str, **settings: int) -> tuple[str, dict]:
    decontamination = Decontamination(DecontaminationConfig(**settings))
    decontamination.hold(evaluation)
    return decontamination.clean(training, tokens(training), "here"), decontamination.report()


def test_tokens_are_words_or_characters_of_scripts_without_spaces() -> None:
    assert len(tokens("Don't stop, 3.14!")) == 5
    assert len(tokens("漢字かな ภาษา")) == 8 and (tokens("漢字かな") & np.uint64(1)).all()
    assert len(tokens("한국어 हिन्दी")) == 2
    assert np.array_equal(tokens("ＡＢＣ Cafe\u0301"), tokens("abc CAFÉ"))
    assert content_hash("A  b\n") == content_hash("a B") != content_hash("a c")


def test_a_planted_13_gram_is_cut_in_spite_of_case_and_punctuation_and_a_12_gram_is_not() -> None:
    words = VERSE.split()
    planted = " - ".join(words[2:15]).upper() + "!"
    text, report = cleaned(VERSE, f"A line before.\nThey say: {planted}\nA line behind.")
    assert text == "A line before.\nA line behind."
    assert report["ngrams_found"] == 1 and report["removed"]["passages"] == 1
    assert report["sources"]["here"]["cut"] == 1 and report["sources"]["here"]["dropped"] == 0
    twelve = "They say: " + " ".join(words[2:14]) + " and so on."
    assert cleaned(VERSE, twelve)[0] == twelve


def test_a_13_gram_over_two_lines_is_broken_and_a_text_of_nothing_else_is_dropped() -> None:
    words = VERSE.split()
    text, _ = cleaned(VERSE, " ".join(words[:5]) + "\n" + " ".join(words[5:]) + "\nUnrelated.")
    assert text == " ".join(words[:5]) + "\nUnrelated."
    text, report = cleaned(VERSE, VERSE.lower())
    assert text == "" and report["removed"]["dropped"] == 1


def test_26_characters_count_in_scripts_without_spaces() -> None:
    assert cleaned(JAPANESE, f"前文。\n「{JAPANESE[3:29]}」\n後文。")[0] == "前文。\n後文。"
    kept = f"前文。{JAPANESE[3:28]}後文。"
    assert cleaned(JAPANESE, kept)[0] == kept


def test_a_short_line_matches_as_a_whole_and_a_heading_does_not() -> None:
    line = "Supercalifragilistic expialidocious antidisestablishmentarianism floccinaucinihilipilification"
    assert cleaned(f"Heading\n{line}", f"Heading\n  {line.upper()}\nRest")[0] == "Heading\nRest"


def test_a_sentence_of_a_long_line_goes_and_the_others_stay() -> None:
    sentences = [f"Sentence number {n} tells of the thing that happened on day {n}." for n in range(40)]
    training = " ".join([*sentences[:20], f"{VERSE}.", *sentences[20:]])
    assert cleaned(VERSE, training)[0] == " ".join(sentences)


def test_evaluation_text_beyond_the_bound_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(DataError, match=r"6 n-grams, over 3; raise ingest\.decontamination\.most_ngrams"):
        cleaned(VERSE, "anything", most_ngrams=3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_what_is_cut_holds_every_n_gram_of_the_evaluation_text(seed: int) -> None:
    rng = random.Random(seed)
    words = [rng.choice(string.ascii_lowercase) + rng.choice(string.ascii_lowercase) for _ in range(12)]
    evaluation = " ".join(rng.choices(words, k=60))
    pieces = [" ".join(rng.choices(words, k=rng.randrange(1, 30))) for _ in range(6)]
    pieces.insert(rng.randrange(6), " ".join(evaluation.split()[10 : 10 + rng.randrange(20, 40)]))
    text, _ = cleaned(evaluation, "\n".join(pieces), words=5)
    held = {tuple(evaluation.split()[i : i + 5]) for i in range(56)}
    assert not held & {tuple(text.split()[i : i + 5]) for i in range(len(text.split()) - 4)}


def copies(modality: str, contents: list[str] | list[bytes], **settings: float | None) -> list[bool]:
    duplicates = Duplicates(DuplicatesConfig(**settings))  # type: ignore[arg-type]
    key = {"text": "text", "images": "png"}[modality]
    rows = [{"id": str(number), key: content} for number, content in enumerate(contents)]
    return [duplicates.is_copy(modality, row, tokens(row["text"]) if modality == "text" else None) for row in rows]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_a_near_duplicate_is_found_and_unrelated_texts_are_kept(seed: int, unspaced: bool) -> None:
    rng = random.Random(seed)
    joint = "" if unspaced else " "
    alphabet = [chr(0x4E00 + n) for n in range(400)] if unspaced else [f"word{n}" for n in range(400)]
    first, other = (rng.choices(alphabet, k=200) for _ in range(2))
    changed = list(first)
    changed[rng.randrange(200)] = "新" if unspaced else "changed"
    texts = [joint.join(first), joint.join(changed), joint.join(other), joint.join(first[:100])]
    assert copies("text", texts) == [False, True, False, False]
    assert copies("text", texts, text=None) == [False, False, False, False]


def test_a_copy_with_other_case_width_and_spaces_is_exact_and_the_first_stays() -> None:
    duplicates = Duplicates(DuplicatesConfig())
    for key, text in (("a", "Some  text"), ("b", "ＳＯＭＥ text\n")):
        duplicates.is_copy("text", {"id": key, "text": text}, tokens(text))
    assert duplicates.report()["exact"]["text"] == 1 and duplicates.report()["near"]["text"] == 0
    assert duplicates.report()["examples"] == [{"kind": "exact", "modality": "text", "dropped": "b", "kept": "a"}]


def test_a_recoded_image_is_near_and_another_colour_is_not() -> None:
    picture = media.pixels(64, 64, seed=1)
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((128, 128), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    heart = np.full((32, 32, 3), 255, np.uint8)
    heart[8:24, 8:24] = (200, 0, 0)
    other = heart.copy()
    other[8:24, 8:24] = (0, 100, 0)  # the same luminance, nearly
    contents = [media.image("PNG", picture), buffer.getvalue(), media.image("PNG", heart), media.image("PNG", other)]
    assert copies("images", contents) == [False, True, False, False]
    assert copies("images", contents, images=None) == [False, False, False, False]


LONG = {
    "en": "The quick brown fox jumps over the lazy dog while the farmer watches from the old wooden gate. " * 3,
    "de": "Der schnelle braune Fuchs springt über den faulen Hund, während der Bauer vom Tor aus zusieht. " * 3,
    "ja": "素早い茶色の狐がのろまな犬を飛び越える間に、農夫は古い木の門からそれを静かに眺めていました。" * 6,
}


def test_long_texts_in_another_language_are_told_and_short_ones_left_alone() -> None:
    languages = Languages(LanguagesConfig())
    row = {"text": LONG["en"], "language": "de"}
    assert "declared de, but identified as en" in str(languages.tag(row))
    assert row["identified"] == "en" and row["language"] == "de"
    for text, declared in [(LONG["de"], "de_AT"), (LONG["ja"], "ja"), ("OK", "de"), (LONG["en"], "tlh")]:
        assert languages.tag({"text": text, "language": declared}) is None
    report = languages.report()["text"]
    assert report["de"] == {"checked": 1, "mismatch_share": 1.0, "found": {"en": 1}}
    assert report["ja"]["mismatch_share"] == 0.0 and "tlh" not in report


def test_an_undeclared_language_is_identified_and_short_captions_are_judged_together() -> None:
    languages = Languages(LanguagesConfig())
    row = {"text": LONG["de"], "language": None}
    assert languages.tag(row) is None and row["language"] == "de"
    assert identify("12345 !?")[0] == "und"
    for _ in range(30):
        languages.pool("images", "fr", "red apple on the table")
    assert languages.report()["images"]["fr"]["found"] == {"en": languages.report()["images"]["fr"]["checked"]}
