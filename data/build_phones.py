"""Make `data/teacher/phones.npz`: which phone is spoken when in the English prompts, to probe the audio tokenizer with.

    python data/build_phones.py --packages /some/folder     (100 MB of packages, a minute)

A forced alignment of the transcripts with the English acoustic model of pocketsphinx (BSD, its wheel holds it): made by
a machine, independent of the tokenizer's teacher, and no part of any training. Prompts with a word that the
dictionary lacks, or that no path aligns, are left out.
"""

import argparse
import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from builders.packages import Packages
from builders.speech import prompts
from scipy.signal import resample_poly

RATE, HOP = 8000, 80  # Hz, and samples of one label: 10 ms
BEAM = 1e-80  # wide: short prompts cost little


def load_aligner(packages: Packages) -> Any:
    """A decoder of pocketsphinx without a language model."""
    sys.path.append(str(packages.wheel("pocketsphinx")))
    from pocketsphinx import Decoder  # found on the line above only now

    return Decoder(lm=None, samprate=2 * RATE, beam=BEAM, wbeam=BEAM, pbeam=BEAM, loglevel="FATAL")


def align(decoder: Any, transcript: str, pcm: np.ndarray) -> list[tuple[int, int, str]] | None:
    """Start and length (10 ms) and name of each phone; None where the transcript cannot be laid over the sound."""
    words = "".join(c if c.isalpha() or c in "' " else " " for c in transcript.lower()).split()
    if not words or any(decoder.lookup_word(word) is None for word in words):
        return None
    wide = np.clip(resample_poly(pcm.astype(np.float32), 2, 1), -32767, 32767).astype("<i2").tobytes()
    try:
        decoder.set_align_text(" ".join(words))
        _hear(decoder, wide)
        decoder.set_alignment()
        _hear(decoder, wide)
        return [(phone.start, phone.duration, phone.name) for word in decoder.get_alignment() for phone in word]
    except RuntimeError:  # no path: the prompt says something else
        return None


def _hear(decoder: Any, samples: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(samples, no_search=False, full_utt=True)
    decoder.end_utt()


def main() -> None:
    """Align every English prompt and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of packages (filled as needed)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "teacher/phones.npz")
    arguments = parser.parse_args()
    packages = Packages(arguments.packages.resolve(), arguments.packages.resolve() / "unpacked")
    decoder, names = load_aligner(packages), ["none"]
    lines: dict[bytes, np.ndarray] = {}
    spoken = prompts(packages, "en")
    for transcript, gsm in spoken.values():
        pcm, _ = soundfile.read(
            io.BytesIO(gsm), format="RAW", subtype="GSM610", samplerate=RATE, channels=1, dtype="int16"
        )
        found = align(decoder, transcript, pcm)
        if found is None:
            continue
        line = np.zeros(len(pcm) // HOP, np.uint8)  # 0: no phone
        for start, length, name in found:
            if name != "SIL":
                if name not in names:
                    names.append(name)
                line[start : start + length] = names.index(name)
        lines[hashlib.sha256(pcm.astype("<i2").tobytes()).digest()] = line
    order = sorted(lines)
    np.savez_compressed(
        arguments.out,
        digest=np.frombuffer(b"".join(order), np.uint8).reshape(-1, 32),
        steps=np.array([len(lines[name]) for name in order], np.int32),
        phones=np.concatenate([lines[name] for name in order]),
        names=np.array(names),
    )
    print(f"{arguments.out}: {len(order)} of {len(spoken)} English prompts, {len(names) - 1} phones, "
          f"{arguments.out.stat().st_size:,} bytes", file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    main()
