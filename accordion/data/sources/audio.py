"""Speech with transcripts: raw GSM 06.10 files in a zip archive, transcripts beside it."""

from pathlib import Path

from accordion.data import media
from accordion.data.media.audio import to_int16
from accordion.data.sources.base import Quarantine, Row, ZipMembers, json_rows, require, require_rows
from accordion.errors import DataError

KEYS = ("file", "key", "language", "transcript", "source", "licence")


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
        try:
            pcm, rate = media.read_audio(data, row["file"])
        except DataError as error:
            quarantine.refuse(members.path, row["file"], str(error))
            continue
        rows.append(
            {
                "id": f"audio/{row['file'].removesuffix('.gsm')}",
                "pcm": to_int16(pcm),
                "rate": rate,
                "transcript": row["transcript"].strip(),
                "language": row["language"],
                "key": row["key"],
                "source": row["source"],
                "licence": row["licence"],
            }
        )
    return require_rows(rows, part, quarantine)
