"""Small packed batches of all four modalities, drawn from a seeded generator."""

import torch

from accordion.config.pretrain import ModelConfig
from accordion.data.batch import AUDIO, IMAGE, TEXT, VIDEO, VOICE_SIZE, Batch

SCALES = (1, 2)
FRAMES = 3
SIZES = {"bits": 5, "scales": SCALES, "frames": FRAMES, "audio_levels": 2, "audio_codebook": 7, "text_vocabulary": 50}


def small_config(layers: int = 5, experts: int = 6, top_k: int = 3, **changes) -> ModelConfig:
    """A tiny model that fits the batches of this module."""
    values = {
        "hidden": 16, "heads": 2, "experts": (experts,) * layers, "top_k": (top_k,) * layers, "expert_hidden": 8,
        "shared_hidden": 8, "rope_base": 1e4, **SIZES, **changes,
    }  # fmt: skip
    return ModelConfig.parse(values)


class _Row:
    def __init__(self, length: int, generator: torch.Generator, seeing: bool, told: bool) -> None:
        self.seeing, self.told = seeing, told
        self.length, self.generator, self.at, self.group, self.document = length, generator, 0, 0, -1
        self.seen = 0
        bits, levels = SIZES["bits"], SIZES["audio_levels"]
        none = torch.full((length,), -1)
        self.columns = {
            "modality": torch.zeros(length, dtype=torch.long), "document": none.clone(), "group": none.clone(),
            "position": torch.zeros(length, 3), "token": torch.zeros(length, dtype=torch.long),
            "codes": torch.full((length, levels), -1), "scale": none.clone(), "frame": none.clone(),
            "vision_input": torch.zeros(length, bits), "latent": torch.zeros(length, bits),
            "patch": none.clone(), "target_token": none.clone(),
            "patch_pixels": torch.zeros(length, 48, dtype=torch.uint8), "patch_latent": torch.zeros(length, bits),
            "voice": none.clone(), "voice_vector": torch.zeros(length // 6, VOICE_SIZE),
            "target_bits": torch.full((length, bits), -1.0), "target_codes": torch.full((length, levels), -1),
        }  # fmt: skip

    def draw(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=self.generator)

    def put(self, **values) -> None:
        for name, value in {"document": self.document, "group": self.group, **values}.items():
            self.columns[name][self.at] = value
        self.at += 1

    def text(self, count: int) -> None:
        ids = self.draw(SIZES["text_vocabulary"], count)
        for index in range(count):
            following = int(ids[index + 1]) if index + 1 < count else -1
            self.put(modality=TEXT, token=ids[index], position=float(index), target_token=following)
            self.group += 1

    def vision(self, frames: int, kind: int) -> None:
        for frame in range(frames):
            for scale, side in enumerate(SCALES):
                for cell in range(side * side):
                    where = (torch.tensor([cell // side, cell % side]) + 0.5) * SCALES[-1] / side
                    latent = torch.randn(SIZES["bits"], generator=self.generator) * (scale == len(SCALES) - 1)
                    feature = torch.randn(SIZES["bits"], generator=self.generator) * bool(frame or scale)
                    self.put(
                        modality=kind, scale=scale, frame=frame, vision_input=feature, latent=latent,
                        position=torch.tensor([2.0 + frame, 2 + float(where[0]), 2 + float(where[1])]),
                        target_bits=self.draw(2, SIZES["bits"]).float(),
                    )  # fmt: skip
                self.group += 1

    def look(self, frames: int, kind: int) -> None:
        """Positions that look at the patches of an image, or of a clip of 4 frames: here one block of 2 x 2 each."""
        self.put(modality=kind, frame=0, patch=self.seen, position=float(self.at))
        self.seen += 4 * frames
        self.group += 1

    def audio(self, frames: int) -> None:
        end = SIZES["audio_codebook"]
        codes = self.draw(end, frames + 1, SIZES["audio_levels"])
        codes[frames] = end
        if self.told:
            self.columns["voice_vector"][0].normal_(generator=self.generator)
            self.put(modality=TEXT, token=14, position=0.0, voice=0, target_token=7)
            self.group += 1
        self.put(modality=TEXT, token=7, position=0.0, target_codes=codes[0])
        self.group += 1
        for index in range(frames):
            self.put(modality=AUDIO, codes=codes[index], position=float(index + 1), target_codes=codes[index + 1])
            self.group += 1

    def fill(self, padding: int) -> dict[str, torch.Tensor]:
        video = FRAMES * sum(side * side for side in SCALES)
        self.document = 0
        self.text(3)
        self.vision(1, IMAGE)
        self.document = 1
        self.text(2)
        self.vision(FRAMES, VIDEO)
        self.document = 2
        self.audio(3)
        self.document = 3
        if self.seeing:
            self.columns["patch_pixels"] = self.draw(256, self.length, 48).byte()
            self.columns["patch_latent"].normal_(generator=self.generator)
            self.look(1, IMAGE)
            self.look(4, VIDEO)
        left = self.length - self.at - padding
        assert left > 2, (self.length, self.at, video)
        self.text(left)
        return self.columns

    def fill_with(self, drawn: bool, heard: bool) -> dict[str, torch.Tensor]:
        self.document = 0
        self.text(3)
        if drawn:
            self.vision(1, IMAGE)
            self.document = 1
            self.vision(FRAMES, VIDEO)
        if heard:
            self.audio(3)
        if self.seeing:
            self.columns["patch_pixels"] = self.draw(256, self.length, 48).byte()
            self.columns["patch_latent"].normal_(generator=self.generator)
            self.look(1, IMAGE)
        self.document += 1
        self.text(self.length - self.at)
        return self.columns


def small_batch(rows: int = 4, length: int = 48, seed: int = 0, *, seeing: bool = False, told: bool = False) -> Batch:
    """`rows` packed sequences; each holds text, an image, a video clip and audio, and some end with padding.

    With `seeing` the last document begins with an image and a clip to understand; with `told` the sound has a voice.
    """
    generator = torch.Generator().manual_seed(seed)
    filled = [_Row(length, generator, seeing, told).fill(padding=(row % 3) * 2) for row in range(rows)]
    return Batch.from_columns({name: torch.stack([row[name] for row in filled]) for name in filled[0]})


def sparse_batch(rows: int, length: int = 48, seed: int = 0) -> Batch:
    """Packed sequences, two thirds of which are text alone; the others drawn, or heard in a voice and seen, in turn."""
    generator = torch.Generator().manual_seed(seed)
    filled = [
        _Row(length, generator, seeing=last, told=last).fill_with(drawn=drawn, heard=last)
        for drawn, last in ((row % 6 == 4, row % 6 == 5) for row in range(rows))
    ]
    return Batch.from_columns({name: torch.stack([row[name] for row in filled]) for name in filled[0]})
