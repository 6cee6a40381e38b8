"""Duplicates: exact ones by a hash of the content, near ones by MinHash (text) and perceptual hashes (images).

Records come held-out ones first, then those for training, each in the order of their sources; of two that are
alike the first stays. MinHash with its index takes 1.6 to 1.8 KB of memory a text (`python -m benchmarks duplicates`),
an image 0.5 KB, an exact hash 0.1 KB.
"""

import io
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import imagehash
import numpy as np
from PIL import Image
from rensa import RMinHash, RMinHashDeduplicator

from accordion.config.data import DuplicatesConfig
from accordion.data.ngrams import content_hash, shingles

SHINGLE = 5  # tokens
PERMUTATIONS = 128
SEED = 42  # the one that rensa's index is built for
THUMBNAIL = 8  # pixels a side
ALIKE = 3.0  # mean difference of thumbnails, of 255; coloured hearts share a perceptual hash and differ by 40
EXAMPLES = 5
CONTENT = {"text": "text", "images": "png", "audio": "pcm", "video": "frames"}


class Duplicates:
    """Tells which records to drop, one after the other, and counts them."""

    def __init__(self, config: DuplicatesConfig) -> None:
        self.config = config
        self.seen: dict[str, dict[int, str]] = defaultdict(dict)  # modality -> content hash -> id
        self.texts = RMinHashDeduplicator(threshold=config.text or 1.0, num_perm=PERMUTATIONS, use_lsh=True)
        self.images = NearImages(config.images or 0)
        self.dropped: dict[str, Counter[str]] = {"exact": Counter(), "near": Counter()}
        self.examples: list[dict[str, str]] = []

    def is_copy(self, modality: str, row: dict[str, Any], hashes: np.ndarray | None = None) -> bool:
        """Whether a record equals, or nearly equals, one that came before; if not, it is remembered.

        Args:
            hashes: `ngrams.tokens` of a text.
        """
        if self.is_exact_copy(modality, row):
            return True
        near = None
        if hashes is not None and self.config.text is not None:
            near = self._near_text(row["id"], hashes)
        elif modality == "images" and self.config.images is not None:
            near = self.images.find_or_add(row["id"], row["png"])
        return near is not None and self._drop("near", modality, row["id"], near)

    def is_exact_copy(self, modality: str, row: dict[str, Any]) -> bool:
        """Whether a record equals one before it (asked again of a text that was cut); if not, it is remembered."""
        first = self.seen[modality].setdefault(content_hash(row[CONTENT[modality]]), row["id"])
        return first is not row["id"] and self._drop("exact", modality, row["id"], first)

    def report(self) -> dict[str, Any]:
        """exact and near (modality -> records dropped), and some examples."""
        counts = {kind: {name: found[name] for name in CONTENT} for kind, found in self.dropped.items()}
        return {**counts, "examples": self.examples}

    def _near_text(self, key: str, hashes: np.ndarray) -> str | None:
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=SEED)
        sketch.update(shingles(hashes, SHINGLE).view("S8").tolist())
        return None if self.texts.add(key, sketch) else min(self.texts.get_duplicates(sketch), default="")

    def _drop(self, kind: str, modality: str, key: str, first: str) -> bool:
        self.dropped[kind][modality] += 1
        if self.dropped[kind][modality] <= EXAMPLES:
            self.examples.append({"kind": kind, "modality": modality, "dropped": key, "kept": first})
        return True


class NearImages:
    """Images whose 64-bit perceptual hashes (DCT of the luminance) differ by few bits and whose thumbnails agree.

    Hashes that differ by at most d bits agree in one of d + 1 bands, by which candidates are found.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        edges = np.linspace(0, 64, distance + 2).astype(int).tolist()
        self.bands = list(pairwise(edges))
        self.found: list[tuple[str, int, np.ndarray]] = []
        self.index: dict[tuple[int, int], list[int]] = defaultdict(list)

    def find_or_add(self, key: str, png: bytes) -> str | None:
        """The key of an image like this one, or None after remembering it."""
        with Image.open(io.BytesIO(png)) as picture:
            value = int(str(imagehash.phash(picture)), 16)
            small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        thumbnail = np.asarray(small.convert("RGB"), np.int16)
        places = [(band, value >> low & ((1 << high - low) - 1)) for band, (low, high) in enumerate(self.bands)]
        for other in sorted({number for place in places for number in self.index[place]}):
            name, hashed, shown = self.found[other]
            if (value ^ hashed).bit_count() <= self.distance and np.abs(thumbnail - shown).mean() <= ALIKE:
                return name
        for place in places:
            self.index[place].append(len(self.found))
        self.found.append((key, value, thumbnail))
        return None
