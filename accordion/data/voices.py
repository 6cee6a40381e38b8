"""Which voice a document that is spoken is given: never that of the sound itself, where its speaker is known."""

import random
from collections import OrderedDict, deque

from torch import Tensor

from accordion.data.documents import Spoken
from accordion.data.tokenizers.voice import VoiceEncoder

REMEMBERED = 8  # clips of a speaker
SPEAKERS = 4096  # speakers remembered; beyond it the one that was not heard for longest is forgotten
VECTORS = 65_536  # descriptions kept for clips that come again, 17 MB


class Voices:
    """Gives each clip the voice of one of the other clips of its speaker that came before it.

    Clips come shuffled in training, so that what came before is any of the others. The first clip of a speaker, and
    one whose speaker nobody named, gets the voice of one of its own halves. Memory is bounded, whatever the corpus.

    Args:
        encoder: describes voices.
        drop: share of the clips whose voice is not told.
        rng: of all draws.
    """

    def __init__(self, encoder: VoiceEncoder, drop: float, rng: random.Random) -> None:
        self.encoder, self.drop, self.rng = encoder, drop, rng
        self._heard: OrderedDict[str, deque[str]] = OrderedDict()  # speaker -> ids of clips, the last ones
        self._vectors: OrderedDict[str, Tensor | None] = OrderedDict()  # clip or half of one -> its voice

    def given(self, clip: str, speaker: str, pcm: Tensor) -> Spoken:
        """The voice for the clip of this id, PCM (n,), by `speaker` (empty: nobody knows).

        The clip is remembered for those of its speaker that come after it.
        """
        others = [other for other in self._heard.get(speaker, ()) if other != clip and other in self._vectors]
        if speaker and self._vector(clip, pcm) is not None:
            self._remember(clip, speaker)
        if self.drop and self.rng.random() < self.drop:
            return Spoken(marked=True)
        if others:
            return Spoken(marked=True, vector=self._vectors[self.rng.choice(others)])
        middle = len(pcm) // 2
        halves = [(f"{clip}/1", pcm[:middle]), (f"{clip}/2", pcm[middle:])]
        self.rng.shuffle(halves)
        found = (self._vector(name, half) for name, half in halves)
        return Spoken(marked=True, vector=next((vector for vector in found if vector is not None), None))

    def _remember(self, clip: str, speaker: str) -> None:
        clips = self._heard.setdefault(speaker, deque(maxlen=REMEMBERED))
        if clip not in clips:
            clips.append(clip)
        self._heard.move_to_end(speaker)
        if len(self._heard) > SPEAKERS:
            self._heard.popitem(last=False)

    def _vector(self, name: str, pcm: Tensor) -> Tensor | None:
        if name not in self._vectors:
            self._vectors[name] = self.encoder(pcm)
            if len(self._vectors) > VECTORS:
                self._vectors.popitem(last=False)
        return self._vectors[name]
