"""Speech with transcripts: Asterisk voice prompts, raw GSM 06.10 at 8 kHz, spoken in five languages."""

import gzip
import re
from pathlib import Path

from builders.packages import Package, Packages, check_count
from builders.tiers import Tier
from builders.write import Written, json_lines, languages_of, rank, write_zip

LICENCES = {"en": "CC-BY-SA-3.0", "es": "CC-BY-SA-3.0", "fr": "CC-BY-SA-3.0", "it": "CC-BY-3.0", "ru": "CC-BY-3.0"}
SPEAKERS = {  # the packages' own notes, see NOTICE
    "en": "Allison Smith", "es": "Allison Smith", "fr": "June Wallack", "it": "Carlo Flora", "ru": "Maxim Topal",
}  # fmt: skip
PACKAGES: tuple[Package, ...] = tuple(
    ("deb", f"asterisk-core-sounds-{language}{end}") for language in LICENCES for end in ("", "-gsm")
)
BYTES_PER_SECOND = 1650  # 33 bytes for each 20 ms
PROMPTS = 2669  # in all five languages together, of 2,731 with a transcript: tones, music and silence go
COMMON_KEYS = 448  # spoken in every one of them
Spoken = dict[str, dict[str, tuple[str, bytes]]]  # language -> key -> (transcript, GSM bytes)


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


def build_speech(packages: Packages, out: Path, tier: Tier) -> list[Written]:
    """`audio/prompts.zip` (XX/KEY.gsm) and `audio/transcripts.jsonl` (file, key, language, speaker, transcript, …)."""
    spoken: Spoken = {language: prompts(packages, language) for language in LICENCES}
    check_count("asterisk-core-sounds", "prompts with a transcript", sum(map(len, spoken.values())), PROMPTS)
    common = set.intersection(*(set(found) for found in spoken.values()))
    check_count("asterisk-core-sounds", "keys spoken in all five languages", len(common), COMMON_KEYS)
    members: dict[str, bytes] = {}
    rows = []
    for language, key in _chosen(spoken, common, tier):
        transcript, gsm = spoken[language][key]
        members[f"{language}/{key}.gsm"] = gsm
        rows.append(
            {
                "file": f"{language}/{key}.gsm",
                "key": key,
                "language": language,
                "speaker": SPEAKERS[language],
                "transcript": transcript,
                "source": f"asterisk-core-sounds-{language}-gsm",
                "licence": LICENCES[language],
            }
        )
    write_zip(out / "audio/prompts.zip", members)
    (out / "audio/transcripts.jsonl").write_text(json_lines(sorted(rows, key=lambda row: row["file"])))
    licence = "CC-BY-SA-3.0 (en, es, fr), CC-BY-3.0 (it, ru)"
    about = {"packages": PACKAGES, "licence": licence, "languages": languages_of(rows)}
    return [
        Written(
            file="audio/prompts.zip", records=len(rows), unit="recordings", changes="recordings unchanged", **about
        ),
        Written(
            file="audio/transcripts.jsonl",
            records=len(rows),
            unit="transcripts",
            changes="as JSON lines, white space single, speakers named",
            **about,
        ),
    ]


def _chosen(spoken: Spoken, common: set[str], tier: Tier) -> list[tuple[str, str]]:
    """(language, key) of the tier's prompts: all, or whole keys in every language up to the budget of bytes."""
    low, high = (int(seconds * BYTES_PER_SECOND) for seconds in tier.speech_seconds)
    if tier.speech_bytes is None:
        return [(language, key) for language, found in spoken.items() for key, (_, gsm) in found.items()
                if low <= len(gsm) <= high]  # fmt: skip
    fitting = [key for key in common if all(low <= len(found[key][1]) <= high for found in spoken.values())]
    chosen: list[tuple[str, str]] = []
    used = 0
    for key in sorted(fitting, key=rank):
        size = sum(len(found[key][1]) for found in spoken.values())
        if used + size > tier.speech_bytes:
            break
        used += size
        chosen += [(language, key) for language in spoken]
    return chosen
