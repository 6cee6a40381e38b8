"""Speech with transcripts, as 16-bit mono samples of one rate."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from accordion.config.data import IngestConfig, SourceConfig
from accordion.data import media
from accordion.data.media.audio import to_int16
from accordion.data.sources.base import Quarantine, Row, described, named
from accordion.data.sources.items import caption_of, items, suffixes_of
from accordion.errors import DataError


def audio_rows(source: SourceConfig, quarantine: Quarantine, config: IngestConfig) -> Iterator[tuple[Path, str, Row]]:
    """(file, record, row) of each clip: id, group, key, pcm (int16 little endian), rate, transcript, language, ...

    A record may state `key`: clips of the same words (a prompt in all voices) share it and stay in one split; and
    `speaker`, a name that stands for one person in all sources (empty where nobody knows).
    """
    for item in items(source, suffixes_of("audio"), quarantine):
        known = described(source, item.fields)
        transcript = caption_of(item.fields)
        if not transcript or not known["source"] or not known["licence"]:
            wrong = "no source or licence, in the record or in ingest.sources" if transcript else "no transcript"
            quarantine.refuse(*item.said, wrong)
            continue
        try:
            pcm, rate = media.read_audio(item.data, item.name if isinstance(item.data, bytes) else None)
        except DataError as error:
            quarantine.refuse(item.file, item.record, str(error))
            continue
        name = named(source, str(PurePosixPath(item.name).with_suffix("")))
        key = str(item.fields.get("key") or item.fields.get("group") or name)
        yield (
            item.file,
            item.record,
            {
                "id": f"audio/{name}",
                "group": key,
                "key": key,
                "pcm": to_int16(media.resample(pcm, rate, config.audio_rate)),
                "rate": config.audio_rate,
                "transcript": transcript,
                "speaker": str(item.fields.get("speaker") or "").strip(),
                **known,
            },
        )
