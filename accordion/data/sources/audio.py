"""Speech with transcripts: raw GSM 06.10 files in a zip archive, transcripts beside it."""

import io
from pathlib import Path

import soundfile

from accordion.data.sources.base import Quarantine, Row, ZipMembers, json_rows, require, require_rows

RATE = 8000  # samples a second
FRAME_BYTES = 33  # one GSM 06.10 frame: 160 samples, 20 ms
SIGNATURE = 0xD  # upper four bits of each frame
KEYS = ("file", "key", "language", "transcript", "source", "licence")


def check_gsm(data: bytes) -> str | None:
    """What is wrong with raw GSM 06.10 (None: nothing): it has no checksum, but whole frames with a signature."""
    if not data:
        return "empty GSM file"
    if len(data) % FRAME_BYTES:
        return f"truncated GSM: {len(data)} bytes are no whole number of {FRAME_BYTES}-byte frames"
    for frame, start in enumerate(range(0, len(data), FRAME_BYTES)):
        if data[start] >> 4 != SIGNATURE:
            return f"corrupt GSM: frame {frame} (byte {start}) has no GSM 06.10 signature"
    return None


def decode_gsm(data: bytes) -> bytes:
    """Raw GSM 06.10 -> int16 little-endian samples at 8 kHz; 160 samples for each 33 bytes."""
    samples, _ = soundfile.read(
        io.BytesIO(data), format="RAW", subtype="GSM610", samplerate=RATE, channels=1, dtype="int16"
    )
    return samples.astype("<i2").tobytes()


def read_audio(folder: Path, quarantine: Quarantine) -> list[Row]:
    """Rows of `audio/`: id, pcm (int16 little endian), rate, transcript, language, key, source, licence."""
    part = require(folder / "audio", "speech and its transcripts")
    members = ZipMembers(part / "prompts.zip", quarantine)
    transcripts = require(part / "transcripts.jsonl", "transcripts of the speech")
    rows: list[Row] = []
    for _, row in json_rows(transcripts, quarantine, KEYS):
        data = members.read(row["file"])
        if data is None:
            continue
        wrong = check_gsm(data)
        if wrong:
            quarantine.refuse(members.path, row["file"], wrong)
            continue
        rows.append(
            {
                "id": f"audio/{row['file'].removesuffix('.gsm')}",
                "pcm": decode_gsm(data),
                "rate": RATE,
                "transcript": row["transcript"].strip(),
                "language": row["language"],
                "key": row["key"],
                "source": row["source"],
                "licence": row["licence"],
            }
        )
    return require_rows(rows, part, quarantine)
