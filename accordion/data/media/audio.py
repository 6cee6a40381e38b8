"""Audio: WAV, FLAC, OGG, MP3 and raw GSM as mono samples, and resampling."""

from math import gcd

import numpy as np
import soundfile

from accordion.data.media.kinds import KINDS, Format, Source, damaged, format_of, opened
from accordion.data.media.whole import fault_of
from accordion.errors import DataError

GSM_RATE = 8000  # samples a second
RATES = (1_000, 384_000)  # samples a second
LONGEST_SECONDS = 1_800
BLOCK = 2**18  # samples (of each channel) decoded at once
MP3_SLACK = 4 * 1152  # samples by which a header without an exact count may be off


def read_audio(source: Source, name: str | None = None) -> tuple[np.ndarray, int]:
    """Samples as float32 mono of (n,) in [-1, 1] and their rate in Hz; channels are averaged.

    Raises:
        DataError: no such file, empty, no audio, damaged, truncated, without samples, with NaN, or over
            LONGEST_SECONDS; the text names the file. (An MP3 without a frame count may end early unnoticed.)
    """
    with opened(source, name) as (file, label):
        found = format_of(file, label)
        if KINDS[found] != "audio":
            raise DataError(f"{label}: a {found} file; wants WAV, FLAC, OGG, MP3 or raw GSM audio")
        fault = fault_of(file, found)
        if fault:
            raise damaged(label, found, fault)
        raw = {"format": "RAW", "subtype": "GSM610", "samplerate": GSM_RATE, "channels": 1} if found == "gsm" else {}
        try:
            with soundfile.SoundFile(file, **raw) as audio:
                return _mono(audio, label, found), audio.samplerate
        except (soundfile.SoundFileError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise damaged(label, found, error) from None


def resample(pcm: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Samples (n,) at `rate` Hz as float32 (ceil(n to / rate),) at `to` Hz, by a polyphase filter (Kaiser window)."""
    if rate == to:
        return pcm.astype(np.float32, copy=False)
    from scipy.signal import resample_poly  # takes a second to import

    common = gcd(rate, to)
    return resample_poly(pcm, to // common, rate // common).astype(np.float32)


def to_int16(pcm: np.ndarray) -> bytes:
    """Samples in [-1, 1] as 16-bit little-endian PCM; louder ones are clipped."""
    return (pcm * 32768).round().clip(-32768, 32767).astype("<i2").tobytes()


def _mono(audio: soundfile.SoundFile, label: str, found: Format) -> np.ndarray:
    rate, declared = audio.samplerate, audio.frames
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{label}: {rate} samples a second; wants {RATES[0]:,} to {RATES[1]:,}, resample it")
    parts = []
    count = 0
    while len(block := audio.read(BLOCK, dtype="float32", always_2d=True)):
        count += len(block)
        if count > LONGEST_SECONDS * rate:
            raise DataError(f"{label}: longer than {LONGEST_SECONDS} seconds; cut it into pieces")
        parts.append(block.mean(axis=1))
    if not count:
        raise DataError(f"{label}: no samples; replace it or leave it out")
    if count < declared - (MP3_SLACK if found == "mp3" else 0) and declared < 2**62:
        raise damaged(label, found, f"{count} of {declared} samples can be read")
    pcm = np.concatenate(parts)
    if not np.isfinite(pcm).all():
        raise damaged(label, found, "samples that are no numbers")
    return pcm
