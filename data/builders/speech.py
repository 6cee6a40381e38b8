"""Speech with transcripts: Asterisk voice prompts, raw GSM 06.10 at 8 kHz, spoken in five languages."""

import gzip
import re
from pathlib import Path

from builders.packages import Packages
from builders.write import json_lines, rank, write_zip

LICENCES = {"en": "CC-BY-SA-3.0", "es": "CC-BY-SA-3.0", "fr": "CC-BY-SA-3.0", "it": "CC-BY-3.0", "ru": "CC-BY-3.0"}
BYTES_PER_SECOND = 1650  # 33 bytes for each 20 ms
SECONDS = (0.8, 6.0)
BUDGET = 1_300_000  # bytes of GSM over all languages


def prompts(packages: Packages, language: str) -> dict[str, tuple[str, bytes]]:
    """key -> (transcript, GSM bytes) of every usable prompt."""
    notes = packages.deb(f"asterisk-core-sounds-{language}") / "usr/share/doc"
    text = gzip.decompress(next(notes.rglob("core-sounds-*.txt.gz")).read_bytes()).decode("utf-8-sig")
    sounds = packages.deb(f"asterisk-core-sounds-{language}-gsm") / "usr/share/asterisk/sounds"
    folder = next(path for path in sounds.iterdir() if path.is_dir() and not path.is_symlink())
    found = {}
    for line in text.splitlines():
        key, separator, transcript = line.partition(":")
        key, transcript = key.strip(), re.sub(r"\s+", " ", transcript).strip()
        path = folder / f"{key}.gsm"
        if line.startswith(";") or not separator or not transcript or transcript[0] in "[<(" or not path.is_file():
            continue
        if "silence" not in key and "beep" not in key:
            found[key] = (transcript, path.read_bytes())
    return found


def build_speech(packages: Packages, out: Path) -> None:
    """`audio/prompts.zip` (XX/KEY.gsm) and `audio/transcripts.jsonl` (file, key, language, transcript, …)."""
    spoken = {language: prompts(packages, language) for language in LICENCES}
    common = set.intersection(*(set(found) for found in spoken.values()))
    if len(common) < 300:
        raise SystemExit(f"asterisk-core-sounds: {len(common)} keys in all five languages, expected about 448")
    low, high = (int(seconds * BYTES_PER_SECOND) for seconds in SECONDS)
    fitting = [key for key in common if all(low <= len(found[key][1]) <= high for found in spoken.values())]
    members: dict[str, bytes] = {}
    rows = []
    for key in sorted(fitting, key=rank):
        sizes = sum(len(found[key][1]) for found in spoken.values())
        if sum(map(len, members.values())) + sizes > BUDGET:
            break
        for language, found in spoken.items():
            transcript, gsm = found[key]
            members[f"{language}/{key}.gsm"] = gsm
            rows.append(
                {
                    "file": f"{language}/{key}.gsm",
                    "key": key,
                    "language": language,
                    "transcript": transcript,
                    "source": f"asterisk-core-sounds-{language}-gsm",
                    "licence": LICENCES[language],
                }
            )
    write_zip(out / "audio/prompts.zip", members)
    (out / "audio/transcripts.jsonl").write_text(json_lines(sorted(rows, key=lambda row: row["file"])))
