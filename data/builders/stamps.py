"""Pictures with captions in many languages and the captions spoken: the Tux Paint stamps, an extra of the full tier."""

import re
from pathlib import Path

from builders.packages import Package, Packages, check_count
from builders.tiers import Tier
from builders.write import Written, json_lines, write_zip

PACKAGES: tuple[Package, ...] = (("deb", "tuxpaint-stamps-default"),)
LICENCE = "GPL-2.0"
CAPTIONS = 952  # text files
PICTURES = 785  # PNG files that have one
SPEECH = 7289  # recordings of a caption that is there in their language
TRIPLES = 6143  # of these, with a PNG picture; the others are drawings in SVG
# Left out, since a corpus with them is refused (validate_data): 575 Spanish recordings are overdriven, 5 to 17 % of
# their samples at the limit; one (and its copy) is nearly all silence; two pictures are white, or one bar, on white.
OVERDRIVEN = {"es"}
SILENT = {("household/tools/hammer", "bg"), ("household/tools/hammer2", "bg")}
BLANK = {"naturalforces/lightningbolt", "symbols/alphabets/english/filled/uppercase/I_filled"}
LINE = re.compile(r"([a-z]{2,3}(?:_[A-Z]{2})?(?:@[a-z]+)?)(?:\.utf8)?=(.+)")
SPOKEN = re.compile(r"(.+)_desc(?:_([a-z]{2,3}(?:_[A-Z]{2})?))?\.ogg", re.IGNORECASE)
TAGS = {"ca@valencia": "ca-valencia", "sr@latin": "sr-Latn", "zh_CN": "zh", "zh_TW": "zh-Hant"}


def tag(locale: str) -> str:
    """Language tag of a locale: `pt_BR` -> `pt-BR`."""
    return TAGS.get(locale, locale.split("@")[0].replace("_", "-"))


def captions(path: Path) -> dict[str, str]:
    """Language -> caption of a stamp: the first line is English, the others are `XX.utf8=caption`."""
    first, *others = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    found = {"en": first.strip()}
    for line in others:
        match = LINE.fullmatch(line.strip())
        if match and "\ufffd" not in line:
            found[tag(match.group(1))] = match.group(2).strip()
    return {language: text for language, text in found.items() if text and "\ufffd" not in text}


def build_stamps(packages: Packages, out: Path, tier: Tier) -> list[Written]:
    """`images/tuxpaint.zip` and `audio/tuxpaint.zip`; their rows go to the lists that are there.

    The picture and its spoken captions are one `group` and the recordings' `key`, so that triples can be joined.
    """
    root = packages.deb("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    texts = {path.with_suffix("").relative_to(root).as_posix(): captions(path) for path in sorted(root.rglob("*.txt"))}
    check_count("tuxpaint-stamps-default", "stamps with captions", len(texts), CAPTIONS)
    pictures = {
        name: root / f"{name}.png" for name in texts if (root / f"{name}.png").is_file() and "en" in texts[name]
    }
    check_count("tuxpaint-stamps-default", "pictures with a caption", len(pictures), PICTURES)
    spoken = _spoken(root, texts)
    check_count("tuxpaint-stamps-default", "spoken captions", len(spoken), SPEECH)
    triples = sum(name in pictures for name, _ in spoken)
    check_count("tuxpaint-stamps-default", "triples of picture, caption and speech", triples, TRIPLES)
    pictures = {name: path for name, path in pictures.items() if name not in BLANK}
    spoken = {
        (name, language): path
        for (name, language), path in spoken.items()
        if language not in OVERDRIVEN and (name, language) not in SILENT
    }
    about = {"source": PACKAGES[0][1], "licence": LICENCE}
    images = [{"file": f"tuxpaint/{name}.png", "group": f"tuxpaint/{name}", "captions": texts[name], **about}
              for name in sorted(pictures)]  # fmt: skip
    clips = [{"file": f"tuxpaint/{name}_{language}.ogg", "key": f"tuxpaint/{name}", "language": language,
              "transcript": texts[name][language], **about} for name, language in sorted(spoken)]  # fmt: skip
    write_zip(
        out / "images/tuxpaint.zip", {f"tuxpaint/{name}.png": path.read_bytes() for name, path in pictures.items()}
    )
    recordings = {f"tuxpaint/{name}_{language}.ogg": path.read_bytes() for (name, language), path in spoken.items()}
    write_zip(out / "audio/tuxpaint.zip", recordings)
    for listing, rows in (("images/captions.jsonl", images), ("audio/transcripts.jsonl", clips)):
        with (out / listing).open("a", encoding="utf-8") as file:
            file.write(json_lines(rows))
    locales = tuple(sorted({language for name in pictures for language in texts[name]}))
    notice = {
        "packages": PACKAGES,
        "licence": LICENCE,
        "changes": "files unchanged, faulty ones left out; captions in the list beside them",
    }
    return [
        Written(file="images/tuxpaint.zip", records=len(images), unit="pictures", languages=locales, **notice),
        Written(file="audio/tuxpaint.zip", records=len(clips), unit="recordings",
                languages=tuple(sorted({language for _, language in spoken})), **notice),
    ]  # fmt: skip


def _spoken(root: Path, texts: dict[str, dict[str, str]]) -> dict[tuple[str, str], Path]:
    """(stamp, language) -> recording of its caption; without a language in its name it is English."""
    found = {}
    for path in sorted(root.rglob("*_desc*.ogg")):
        match = SPOKEN.fullmatch(path.relative_to(root).as_posix())
        if match:
            language = tag(match.group(2) or "en")
            if language in texts.get(match.group(1), {}):
                found[match.group(1), language] = path
    return found
