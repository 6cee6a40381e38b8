"""Train the audio tokenizer with one profile's settings and print what is left of held-out speech, by number of codes.

    python -m benchmarks.audio_quality --corpus FOLDER --profile smoke --hold-out it [--set KEY=VALUE ...]
    python -m benchmarks.audio_quality --corpus FOLDER --profile workstation --minutes 4 --listen SOUNDS

FOLDER is a corpus as the stage ingest writes it (audio.parquet). Trains on a GPU if there is one. `--hold-out` names
languages that are not learnt; in the shipped speech a language is a voice too (only English and Spanish are read by
the same speaker). `--minutes` measures the speed of a step first and sets the number of steps that fit. `--listen`
writes originals and reconstructions as WAV files, and their spectrograms. The probe asks how much of the phone, of
the teacher's units and of the voice each code tells; phones are a forced alignment (data/build_phones.py).
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from accordion.config import load_profile
from accordion.config.data import AudioTokenizerConfig
from accordion.data.tokenizers.audio import SPECTRA, AudioTokenizer
from accordion.data.tokenizers.audio_measure import (
    MEASURED_CLIPS,
    by_level,
    intelligibility,
    measure,
    scale_invariant_sdr,
)  # fmt: skip
from accordion.data.tokenizers.audio_teacher import Clip
from accordion.data.tokenizers.audio_training import fit, load_clips
from accordion.device import training_device
from accordion.errors import AccordionError, DataError
from accordion.home import REPOSITORY
from accordion.report.reconstruct import spectrogram
from accordion.report.samples import spectrogram_sheet, wav

PHONES = REPOSITORY / "data/teacher/phones.npz"
PROBE_STEPS = 40  # steps that the speed of a step is measured on
RECONSTRUCTION = {"mel_distance_db": "mel dB", "si_sdr_db": "SI-SDR dB", "estoi": "ESTOI"}


def main(arguments: list[str] | None = None) -> None:
    """Run one command line."""
    wanted = parser().parse_args(arguments)
    try:
        changes = tuple(f"tokenizers.audio.{change}" for change in wanted.set)
        config = load_profile(wanted.profile, changes).tokenizers.audio
        clips = {split: load_clips(wanted.corpus, split, config) for split in ("train", "val")}
        learnt, groups = divide(clips, wanted.hold_out)
        if wanted.minutes:
            config = config.model_copy(update={"steps": steps_within(wanted.minutes * 60, config, learnt)})
        started = time.monotonic()
        model, loss, teacher = fit(config, learnt)
        seconds = time.monotonic() - started
        found = {name: measure(model, some) for name, some in groups.items()}
        spoken = phones(model, [*clips["train"], *clips["val"]], PHONES)
        limits = {name: bounds(model, some) for name, some in groups.items()}
    except AccordionError as error:
        sys.exit(f"audio_quality: {error}")
    for name, figures in found.items():
        show(name, figures, model.config)
        for what, values in limits[name].items():
            print(f"{what}: " + ", ".join(f"{RECONSTRUCTION[key]} {value:.2f}" for key, value in values.items()))
    show_phones(spoken)
    device = torch.cuda.get_device_name() if training_device().type == "cuda" else "CPU"
    heard = sum(len(clip.pcm) for clip in learnt) / config.sample_rate
    print(f"\n{config.steps} steps of {config.batch} x {config.segment} frames in {seconds:.0f} s on {device}, from "
          f"{heard / 60:.0f} minutes of speech; loss {loss:.4f}; code 1 taught by {teacher['name']}")  # fmt: skip
    if wanted.listen:
        for name, some in groups.items():
            listen(model, some, wanted.listen / name.replace(",", "").replace(" ", "-"))
    if wanted.json:
        document = {"config": config.model_dump(), "held_out": wanted.hold_out, "device": device, "seconds": seconds,
                    "loss": loss, "teacher": teacher, "groups": found, "bounds": limits, "phones": spoken}  # fmt: skip
        wanted.json.write_text(json.dumps(document, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="audio_quality", description=__doc__.splitlines()[0] if __doc__ else None)
    found.add_argument("--corpus", type=Path, required=True, help="folder that the stage ingest wrote")
    found.add_argument("--profile", default="smoke", help="configs/NAME.yaml, its section tokenizers.audio")
    found.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the profile's")
    found.add_argument("--hold-out", nargs="*", default=[], metavar="LANGUAGE", help="languages that are not learnt")
    found.add_argument("--minutes", type=float, help="train about so long instead of the profile's steps")
    found.add_argument("--listen", type=Path, help="folder for sounds and spectrograms")
    found.add_argument("--json", type=Path, help="file for every figure")
    return found


def divide(
    clips: Mapping[str, Sequence[Clip]], hold_out: Sequence[str]
) -> tuple[list[Clip], dict[str, list[Clip]]]:  # fmt: skip
    """The clips to learn from, and the validation clips of `known` voices and of each held-out language.

    Raises:
        DataError: the corpus has no such language, or nothing else.
    """
    there = {clip.language for clip in clips["val"]}
    for language in hold_out:
        if language not in there:
            raise DataError(f"--hold-out {language}: no validation clips; the corpus has {', '.join(sorted(there))}")
    learnt = [clip for clip in clips["train"] if clip.language not in hold_out]
    groups = {"known voices": [clip for clip in clips["val"] if clip.language not in hold_out]}
    groups |= {f"{language}, held out": [clip for clip in clips["val"] if clip.language == language]
               for language in hold_out}  # fmt: skip
    if not learnt or not groups["known voices"]:
        raise DataError("--hold-out: nothing is left to learn from; hold out fewer languages")
    return learnt, groups


def steps_within(seconds: float, config: AudioTokenizerConfig, clips: Sequence[Clip]) -> int:
    """Steps that fit into `seconds`, by the speed of a few of them after the start in closed form."""
    taken = []
    for steps in (1, 1, 1 + PROBE_STEPS):  # the first run also pays for starting the device
        started = time.monotonic()
        fit(config.model_copy(update={"steps": steps}), clips)
        taken.append(time.monotonic() - started)
    return max(int((seconds - taken[1]) * PROBE_STEPS / max(taken[2] - taken[1], 1e-3)), PROBE_STEPS)


@torch.no_grad()
def bounds(model: AudioTokenizer, clips: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """What the phase costs: the figures with magnitudes that were not coded, and with a phase that was not rebuilt."""
    names = ("uncoded magnitudes, rebuilt phase", "all codes, true phase")
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    spectra, frame = model.spectra, model.config.frame_samples
    for clip in clips[:: max(1, len(clips) // MEASURED_CLIPS)][:MEASURED_CLIPS]:
        real = F.pad(clip.pcm, (0, -len(clip.pcm) % frame))
        truth = spectra.transform(F.pad(real[None], (spectra.before, 0)))[0]
        coded = model.magnitudes(model.encode(clip.pcm))
        sounds = (spectra.invert(truth.abs(), model.config.rounds), spectra.sound(torch.polar(coded, truth.angle())))
        for name, made in zip(names, sounds, strict=True):
            found[name].append((model.mel_distance(made, real), scale_invariant_sdr(made, real),
                                intelligibility(made, real, model.config.sample_rate)))  # fmt: skip
    return {name: dict(zip(RECONSTRUCTION, np.nanmean(rows, 0).tolist(), strict=True)) for name, rows in found.items()}


def phones(model: AudioTokenizer, clips: Sequence[Clip], path: Path) -> dict[str, Any] | None:
    """How much each code tells of the phone of its 80 ms (the commonest of its eight labels), and shuffled labels.

    Returns:
        None where no clip of the corpus is aligned.
    """
    with np.load(path) as table:
        ends = np.cumsum(table["steps"])
        lines = {bytes(name).hex(): table["phones"][end - steps : end]
                 for name, steps, end in zip(table["digest"], table["steps"], ends, strict=True)}  # fmt: skip
    codes, labels, heard = [], [], 0
    for clip in clips:
        if clip.digest not in lines:
            continue
        line = torch.from_numpy(lines[clip.digest].astype(np.int64))
        phone = line[: len(line) // SPECTRA * SPECTRA].view(-1, SPECTRA).mode(1).values
        codes.append(model.encode(clip.pcm)[: len(phone)][phone > 0])
        labels.append(phone[phone > 0])
        heard += 1
    if not heard:
        return None
    return {"clips": heard, "frames": sum(map(len, labels)), **by_level(torch.cat(codes), torch.cat(labels))}


def show(name: str, figures: Mapping[str, Any], config: AudioTokenizerConfig) -> None:
    """Print one group: a line for each number of codes, then what each level holds."""
    columns = ["codes", "bit/s", *RECONSTRUCTION.values(), "perplexity", "used", "units (shuffled)", "voice (shuffled)"]
    print(f"\n{name}: {figures['clips']} clips, {figures['frames']} frames\n" + "  ".join(f"{c:>16}" for c in columns))
    for level in range(config.levels):
        rate = figures["bits_per_second"] * (level + 1) / config.levels
        probes = [figures["probe"][what] for what in ("units", "voice")]
        cells = [f"{level + 1}", f"{rate:.0f}", *(f"{figures[f'{key}_by_codes'][level]:.3f}" for key in RECONSTRUCTION),
                 f"{figures['perplexity_by_level'][level]:.0f}", f"{figures['used_entries_by_level'][level]:.2f}",
                 *(f"{p['by_level'][level]:.3f} ({p['shuffled_by_level'][level]:.3f})" for p in probes)]  # fmt: skip
        print("  ".join(f"{cell:>16}" for cell in cells))


def show_phones(found: Mapping[str, Any] | None) -> None:
    """Print the probe of phones."""
    if found is None:
        print(f"\nphones: none of these clips is among those of {PHONES.relative_to(REPOSITORY)}")
        return
    pairs = zip(found["by_level"], found["shuffled_by_level"], strict=True)
    print(f"\nshare of the phone's information told by each code (shuffled), {found['frames']} frames of "
          f"{found['clips']} clips: " + ", ".join(f"{value:.3f} ({null:.3f})" for value, null in pairs))  # fmt: skip


def listen(model: AudioTokenizer, clips: Sequence[Clip], out: Path) -> None:
    """Originals and reconstructions of three clips as WAV files, spectrograms below each other as PNG."""
    out.mkdir(parents=True, exist_ok=True)
    for clip in clips[:: max(1, len(clips) // 3)][:3]:
        codes, stem = model.encode(clip.pcm), clip.name.replace("/", "-")
        numbers = sorted({1, min(2, model.config.levels), model.config.levels})
        sounds = {"original": clip.pcm} | {f"{used}-codes": model.decode(codes[:, :used]) for used in numbers}
        samples = {name: (pcm[: len(clip.pcm)] * 32767).round().short().numpy() for name, pcm in sounds.items()}
        for name, values in samples.items():
            (out / f"{stem}-{name}.wav").write_bytes(wav(values, model.config.sample_rate))
        (out / f"{stem}.png").write_bytes(spectrogram_sheet([spectrogram(values) for values in samples.values()]))


if __name__ == "__main__":
    main()
