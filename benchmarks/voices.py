"""Whether a pre-trained model speaks in the voice that it is given, on held-out clips.

    python -m benchmarks.voices --checkpoint checkpoint --json voices.json
    python -m benchmarks.voices --recordings       # how well voices are told apart, without any model

The checkpoint (KIND, KIND:DIGEST or a folder of the store) leads to its tokenizers and its corpus. Prints the loss of
each clip's codes with the voice of another clip of its speaker, with somebody else's and with none, and how far
what is spoken follows the voice that was given; then the same of clips played at two speeds, where both voices are of
the same person and language; all with 95 % intervals over the clips. With `--recordings`: equal
error rates of pairs of the shipped prompts, every fifth prompt held out, and with one person at a time not learnt.
"""

import argparse
import json
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from accordion.data.media import read_audio
from accordion.data.tokenizers.audio_teacher import Clip
from accordion.data.tokenizers.voice import VoiceEncoder, told_apart
from accordion.errors import AccordionError, DataError
from accordion.evaluate.voices import altered, cases, losses, spoken
from accordion.generate import Creator
from accordion.home import REPOSITORY
from accordion.lookup import ancestor, open_verified
from accordion.model import load_model
from accordion.tokenize import MadeWith

RATE = 8000  # samples a second of the shipped recordings


def main(arguments: list[str] | None = None) -> None:
    """Run one command line."""
    wanted = parser().parse_args(arguments)
    if wanted.recordings:
        for name, rates in tell(prompts()).items():
            print(f"{name}: " + ", ".join(f"{pairs} {rate:.3f}" for pairs, rate in rates.items()))
        return
    try:
        folder = open_verified(wanted.checkpoint)
        creator = Creator(load_model(folder), MadeWith(folder))
        if not creator.model.config.voice_size:
            raise DataError(f"{folder}: trained without voices; pack with pack.voices=true and train again")
        corpus, found = ancestor(folder, "corpus"), {}
        for kind, choose in {"persons": cases, "speeds": altered}.items():
            judged = choose(creator, corpus, most=wanted.clips)
            found[kind] = {"losses": losses(creator, judged)}
            if wanted.spoken:
                found[kind]["spoken"] = spoken(creator, judged[: wanted.spoken], seconds=wanted.seconds)
    except AccordionError as error:
        sys.exit(f"voices: {error}")
    show(found)
    if wanted.json:
        wanted.json.write_text(json.dumps(found, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="voices", description=__doc__.splitlines()[0] if __doc__ else None)
    found.add_argument("--checkpoint", default="checkpoint", help="KIND, KIND:DIGEST or a folder")
    found.add_argument("--recordings", action="store_true", help="judge what describes voices, not a model")
    found.add_argument("--clips", type=int, default=200, help="most clips whose loss is taken")
    found.add_argument("--spoken", type=int, default=24, help="clips whose words are spoken; 0: none")
    found.add_argument("--seconds", type=float, default=3.0, help="most of what is spoken")
    found.add_argument("--json", type=Path, help="file for every figure")
    return found


def prompts() -> list[Clip]:
    """The shipped recordings."""
    folder = REPOSITORY / "data/sample/audio"
    rows = [json.loads(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()]
    with zipfile.ZipFile(folder / "prompts.zip") as archive:
        sounds = [torch.from_numpy(read_audio(archive.read(row["file"]), row["file"])[0]) for row in rows]
    return [
        Clip(name=row["key"], pcm=pcm, language=row["language"], digest="", speaker=row["speaker"])
        for row, pcm in zip(rows, sounds, strict=True)
    ]


def tell(clips: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """Equal error rates, of all held-out pairs and of those with a person that was not learnt, by what is compared."""
    late = sorted({clip.name for clip in clips})[::5]
    learnt, held_out = ([clip for clip in clips if (clip.name in late) == held] for held in (False, True))
    names: dict[str, Callable[[int, Clip], str]] = {
        "deviation over all clips": lambda number, _: str(number),
        "halves of clips": lambda _, clip: "",
        "clips of a person": lambda _, clip: clip.speaker,
    }
    found = {}
    for what, name in names.items():
        rates = {}
        for absent in (None, *sorted({clip.speaker for clip in clips})):
            some = [clip for clip in learnt if clip.speaker != absent]
            encoder = VoiceEncoder(RATE)
            encoder.place([clip.pcm for clip in some], [name(number, clip) for number, clip in enumerate(some)])
            rates[absent or "all"] = told_apart(encoder, held_out, only=absent)["equal_error_rate"]
        found[what] = rates
    return found


def show(found: Mapping[str, Any]) -> None:
    """Print the figures."""
    for kind, figures in found.items():
        heard = figures["losses"]
        nats = ", ".join(f"{name} {value:.4f}" for name, value in heard["nats"].items())
        print(f"{kind}, {heard['clips']} held-out clips, nats of a code by the voice that is told: {nats}")
        for name in ("wrong_over_right", "none_over_right"):
            print(f"{kind}, {name.replace('_', ' ')}: {interval(heard[name])}")
        for name, value in figures.get("spoken", {}).items():
            print(f"{kind}, spoken, {name}: {interval(value)}")


def interval(value: Mapping[str, float] | None) -> str:
    """A mean with its interval."""
    if value is None:
        return "nothing to judge"
    return f"{value['mean']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}], {value['count']} clips"


if __name__ == "__main__":
    main()
