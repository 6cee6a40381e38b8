"""How often each text token, audio code and vision bit occurs in packed sequences, and what is expected of that."""

from typing import Any

import numpy as np
import pandas as pd

from accordion.config.data import ValidateShardsConfig
from accordion.data.batch import AUDIO, IMAGE, TEXT, VIDEO
from accordion.data.expectations.common import between
from accordion.data.expectations.statistics import histogram
from accordion.data.expectations.suite import Suite
from accordion.data.tokenizers.text import ALPHABET, SPECIAL

FIRST_MERGE = SPECIAL + len(ALPHABET)  # ids below this are control ids, bytes and single characters


class Codes:
    """Counts over the sequences of one split; ids out of range are left to the checks of single sequences."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self.tokens = np.zeros(meta["text_vocabulary"], np.int64)
        self.codes = np.zeros((meta["audio_levels"], meta["audio_codebook"]), np.int64)
        self.bits = {name: np.zeros((2, meta["bits"]), np.int64) for name in ("image", "video")}  # zeros, ones

    def add(self, part: dict[str, np.ndarray]) -> None:
        """Count some sequences, columns (rows, S, ...)."""
        modality, vocabulary, codebook = part["modality"], len(self.tokens), self.codes.shape[1]
        tokens = part["token"][modality == TEXT]
        self.tokens += np.bincount(tokens[(tokens >= 0) & (tokens < vocabulary)], minlength=vocabulary)
        frames = part["codes"][modality == AUDIO]  # (frames, Q)
        for level, row in enumerate(frames.T):
            self.codes[level] += np.bincount(row[(row >= 0) & (row < codebook)], minlength=codebook)
        for name, value in (("image", IMAGE), ("video", VIDEO)):
            bits = part["target_bits"][modality == value]  # (positions, D)
            self.bits[name] += np.stack([(bits == 0).sum(0), (bits == 1).sum(0)])

    def mixes(self) -> dict[str, dict[str, int]]:
        """Name -> id -> count; of the vision bits, how often each of them is one."""
        levels = {f"audio codes, level {number}": histogram(row) for number, row in enumerate(self.codes, 1)}
        return {
            "text tokens": histogram(self.tokens),
            **levels,
            **{f"{name} bits": histogram(counts[1]) for name, counts in self.bits.items()},
        }

    def suites(self, split: str, config: ValidateShardsConfig) -> list[Suite]:
        """Entropies and shares of the codes; a modality without positions is left to the suite of positions."""
        found = []
        if self.tokens.any():
            found.append(self._text(split, config))
        if self.codes.any():
            found.append(self._audio(split, config))
        bits = [
            {"id": f"{name} bit {number}", "ones": ones / (zeros + ones)}
            for name, counts in self.bits.items()
            for number, (zeros, ones) in enumerate(counts.T)
            if zeros + ones
        ]
        if bits:
            stuck = between("ones", config.bit_balance, 1 - config.bit_balance)
            found.append(Suite(f"{split} vision bits", pd.DataFrame(bits), [stuck]))
        return found

    def _text(self, split: str, config: ValidateShardsConfig) -> Suite:
        words = self.tokens[SPECIAL:].sum()
        row = {
            "id": "text",
            "entropy": entropy(self.tokens),
            "base_share": self.tokens[SPECIAL:FIRST_MERGE].sum() / max(words, 1),
            "control_share": self.tokens[:SPECIAL].sum() / self.tokens.sum(),
        }
        return Suite(f"{split} text tokens", pd.DataFrame([row]), [
            between("entropy", config.text_entropy),
            between("base_share", None, config.base_share),
            between("control_share", None, 0.5),
        ])  # fmt: skip

    def _audio(self, split: str, config: ValidateShardsConfig) -> Suite:
        most = np.log2(self.codes.shape[1])
        rows = [
            {"id": f"level {number}", "entropy": entropy(counts) / most, "used": float((counts > 0).mean())}
            for number, counts in enumerate(self.codes, 1)
        ]
        return Suite(f"{split} audio codes", pd.DataFrame(rows), [between("entropy", config.code_entropy)])


def entropy(counts: np.ndarray) -> float:
    """Shannon entropy of counts, bits."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())
