"""Generation: the cached stream equals the whole forward pass; sampling keeps its bounds; every direction works."""

import numpy as np
import pytest
import torch

from accordion.data.batch import COLUMNS, TABLES, VIDEO, VOICE_SIZE, Batch
from accordion.data.documents import Assembler, Document, Spoken
from accordion.data.tokenizers.text import SPECIAL
from accordion.data.tokenizers.vision import VisionTokenizer
from accordion.errors import DataError, TrainingDiverged
from accordion.generate import Creator, Sampling
from accordion.generate.create import whole_characters
from accordion.generate.sampling import draw, draw_bits
from accordion.generate.stream import Stream
from accordion.model import Model
from tests.unit.generate.conftest import AUDIO, VISION, Tools


def documents(tools: Tools) -> dict[str, Document]:
    maker = Assembler(tools.text, tools.vision, tools.audio, sequence=256)
    clip = torch.rand(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    codes = torch.randint(0, 8, (6, 3), generator=torch.Generator().manual_seed(3))
    found = {"text": maker.texts("the cat and the dog")[0]}
    for first in (False, True):
        found[f"image {first}"] = maker.image("the cat", tools.vision.encode(clip[:, :1]), image_first=first)
    found |= {"audio heard": maker.heard("the dog", codes), "audio spoken": maker.spoken("the dog", codes)}
    for name, vector in (("any", None), ("told", torch.randn(VOICE_SIZE, generator=torch.Generator().manual_seed(4)))):
        found[f"audio, {name} voice"] = maker.spoken("the dog", codes, Spoken(marked=True, vector=vector))
    found["video"] = maker.video("the car", tools.vision.encode(clip))
    pixels = (clip[0] * 255).byte()
    latent = tools.vision.latent(clip).detach()
    found["image seen"] = maker.image_seen("the cat", pixels[:1], latent[:, :1])
    found["video seen"] = maker.video_seen("the car", pixels, latent)
    return found


@pytest.mark.parametrize("together", [1, 3, 1000], ids=["each group", "three groups", "at once"])
def test_a_document_read_group_by_group_gives_the_logits_of_the_whole_forward_pass(model, tools, together):
    for name, document in documents(tools).items():
        columns = {**document.columns, "document": np.zeros_like(document.columns["document"])}
        with torch.no_grad():
            whole = model.outputs(Batch.from_columns({key: values[None] for key, values in columns.items()}))
        stream = Stream(model, document.length)
        heard: list[torch.Tensor] = []
        group, states, shown = columns["group"], [], set()
        for first in range(0, int(group.max()) + 1, together):
            now = (group >= first) & (group < first + together)
            part = {key: values[now] for key, values in columns.items() if key not in TABLES}
            # a table comes with the first group that points to it
            new = {to for to in TABLES.values() if part[to].max(initial=-1) >= 0} - shown
            part |= {key: columns[key][: None if to in new else 0] for key, to in TABLES.items()}
            shown |= new
            last = torch.from_numpy(part["target_codes"][-1].astype(np.int64))

            def choose(level, logits, last=last, heard=heard):
                if level == 0:
                    heard.append(torch.zeros(3, logits.shape[1]))
                heard[-1][level] = logits[0]
                return last[level : level + 1]  # what follows in truth

            states.append(stream.read(part, choose if last[0] >= 0 else None))
        joined = torch.cat(states)
        targets = whole.targets
        with torch.no_grad():
            torch.testing.assert_close(model.text_logits(joined[targets.text_at]), whole.text, atol=2e-5, rtol=0)
            torch.testing.assert_close(model.heads.vision(joined[targets.vision_at]), whole.vision, atol=2e-5, rtol=0)
        assert len(whole.text) + len(whole.vision) + len(whole.audio), name
        if together == 1 and len(whole.audio):
            torch.testing.assert_close(torch.stack(heard), whole.audio, atol=2e-5, rtol=0)


def test_a_later_frame_of_a_stream_sees_only_its_window(model, tools):
    """`video_window` is 1: what the first frame held is in the second after one layer, in the third it is not yet."""
    columns = documents(tools)["video"].columns
    frame = np.where(columns["modality"] == VIDEO, columns["frame"], -1)
    assert [(frame == at).sum() for at in range(3)] == [21] * 3
    other = columns["vision_input"] + (frame == 0)[:, None].astype(np.float16)

    def first_layer(**changed: np.ndarray) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hook = model.layers[0].register_forward_hook(lambda module, given, made: seen.append(made[0][0]))
        stream = Stream(model, 200)
        stream.read({name: {**columns, **changed}[name] for name in COLUMNS})
        hook.remove()
        assert stream.cache.used == len(frame)
        return torch.cat(seen)

    apart = (first_layer() - first_layer(vision_input=other)).abs().amax(1)
    assert apart[frame == 0].gt(0).all() and apart[frame == 1].gt(0).all() and apart[frame == 2].eq(0).all()


def test_a_stream_that_outgrows_its_cache_is_refused(model):
    stream = Stream(model, 200)
    with pytest.raises(DataError, match="do not fit a cache of 200"):
        for _ in range(51):
            stream.tokens([20, 21, 22, 23])


def test_sampling_keeps_to_the_likeliest_and_repeats_by_seed():
    logits = torch.tensor([4.0, 3.0, 2.0, -1.0, float("-inf")])
    generator = torch.Generator().manual_seed(0)

    def seen(**settings) -> set[int]:
        return {draw(logits, Sampling(**settings), generator) for _ in range(400)}

    assert seen() == {0, 1, 2, 3} and seen(top_k=2) == {0, 1} and seen(temperature=0) == {0}
    assert seen(top_p=0.6) == {0} and seen(top_p=0.9) == {0, 1} and seen(temperature=0.05) == {0}
    drawn = [draw(logits, Sampling(seed=4), Sampling(seed=4).generator()) for _ in range(2)]
    assert drawn[0] == drawn[1]
    bits = draw_bits(torch.tensor([[9.0, -9.0, 0.0]]).expand(500, 3), Sampling(), generator)
    assert bits[:, 0].all() and not bits[:, 1].any() and 180 < int(bits[:, 2].sum()) < 320
    assert draw_bits(torch.tensor([0.1, -0.1]), Sampling(temperature=0), generator).tolist() == [1, 0]
    with pytest.raises(TrainingDiverged, match="not finite"):
        draw(logits * float("nan"), Sampling(), generator)
    with pytest.raises(TrainingDiverged, match="not finite"):
        draw_bits(logits * float("nan"), Sampling(), generator)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": -1}, "temperature -1"), ({"top_k": -2}, "top_k -2"), ({"top_p": 0}, "top_p 0"),
     ({"top_p": 1.5}, "top_p 1.5"), ({"guidance": -1}, "guidance -1"), ({"seed": -1}, "seed -1"),
     ({"seed": 2**64}, "seed 18446744073709551616"), ({"temperature": float("nan")}, "temperature")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Sampling(**settings)


def test_every_direction_gives_what_it_promises(model, tools):
    creator, sampling = Creator(model, tools), Sampling(temperature=0.8, top_k=20, seed=5)
    picture = creator.draw("the cat", sampling)
    assert picture.shape == (3, 16, 16) and float(picture.min()) >= 0 and float(picture.max()) <= 1
    assert torch.equal(picture, creator.draw("the cat", sampling))
    assert not torch.equal(picture, creator.draw("the cat", Sampling(seed=6)))
    film = creator.film("the car", None, sampling)
    assert film.shape == (3, 3, 16, 16)
    voice = creator.speak("the dog", sampling, seconds=0.4)
    assert voice.ndim == 1 and len(voice) % AUDIO.frame_samples == 0 and len(voice) <= 3200
    for text in (
        creator.caption(picture, sampling, longest=8),
        creator.describe(film, sampling, longest=8),
        creator.transcribe(voice, sampling, longest=8),
        creator.continue_text([1, *tools.text.encode("the")], sampling, longest=8),
    ):
        assert isinstance(text, str) and all(id_ >= SPECIAL for id_ in tools.text.encode(text))


def test_a_voice_that_is_given_changes_what_is_spoken_and_no_other_request(model, tools):
    creator, time = Creator(model, tools), torch.arange(8000) / 8000
    high, low = (creator.voice(0.3 * (torch.rand(8000) * 0.1 + torch.sin(6.28 * f * time))) for f in (300.0, 100.0))
    assert high.shape == (VOICE_SIZE,)

    def spoken(voice: torch.Tensor | None) -> list[list[float]]:
        return [creator.speak("the dog", Sampling(seed=n), seconds=0.4, voice=voice).tolist() for n in range(6)]

    given = [spoken(voice) for voice in (None, high, low)]
    assert given[1] == spoken(high)
    assert given[0] != given[1] and given[0] != given[2] and given[1] != given[2]


def test_a_voice_is_refused_where_none_sounds_or_the_model_takes_none(model, tools):
    with pytest.raises(DataError, match=r"less than 0\.3 s of the 1\.00 s sound"):
        Creator(model, tools).voice(torch.zeros(8000))
    deaf = Creator(Model(model.config.model_copy(update={"voice_size": 0})).eval(), tools)
    with pytest.raises(DataError, match=r"pack\.voices=true"):
        deaf.voice(torch.rand(8000))
    assert len(deaf.speak("the dog", Sampling(), seconds=0.2))  # as before there were voices
    other = Creator(Model(model.config.model_copy(update={"voice_size": 5})).eval(), tools)
    with pytest.raises(DataError, match="audio tokenizer: sizes"):
        other.voice(torch.rand(8000) - 0.5)


def test_a_film_keeps_the_frames_it_began_with(model, tools):
    creator = Creator(model, tools)
    start = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    film = creator.film("the car", start, Sampling())
    alone = tools.vision.decode(tools.vision.encode(start[None]))[0]
    torch.testing.assert_close(film[:2], alone)
    with pytest.raises(DataError, match="1 to 2"):
        creator.film("", torch.rand(3, 3, 16, 16), Sampling())


def test_guidance_one_is_the_caption_alone_and_zero_is_without_it(model, tools):
    creator = Creator(model, tools)

    def drawn(caption: str, guidance: float) -> torch.Tensor:
        return creator.draw(caption, Sampling(guidance=guidance, temperature=0))

    assert torch.equal(drawn("the cat", 0), drawn("", 1))
    assert not torch.equal(drawn("the cat", 40), drawn("the cat", 1))


def test_the_sound_ends_where_a_level_says_so(model, tools):
    """With heads that say nothing, each level of each frame ends the sound with chance 1/9."""
    ending = Model(model.config, seed=1).eval()
    with torch.no_grad():
        ending.heads.audio.zero_()
    spoken = [len(Creator(ending, tools).speak("the dog", Sampling(seed=seed), seconds=20)) for seed in range(6)]
    assert len(set(spoken)) > 1 and max(spoken) < 20 * 8000  # a frame ends with chance 1 - (8/9)^3


def test_tokenizers_of_another_model_are_refused(model, tools):
    other = Tools(tools.text, VisionTokenizer(VISION.model_copy(update={"bits": 6})), tools.audio)
    with pytest.raises(DataError, match="vision tokenizer: sizes"):
        Creator(model, other).draw("x", Sampling())
    with pytest.raises(DataError, match="at most 4096"):
        Creator(model, tools).continue_text([1] * 5000, Sampling(), longest=1)


def test_half_a_character_is_replaced_so_that_any_answer_can_be_printed():
    assert whole_characters("a\ud83cb\U0001f600\udc67") == "a\ufffdb\U0001f600\ufffd"
    assert whole_characters("всё 漢字") == "всё 漢字"


def test_a_model_without_features_captions_from_bits_and_describes_no_clip(model, tools):
    blind = Creator(Model(model.config.model_copy(update={"vit_layers": 0})).eval(), tools)
    assert isinstance(blind.caption(torch.rand(3, 16, 16), Sampling(), longest=4), str)
    with pytest.raises(DataError, match=r"pack\.understanding=true"):
        blind.describe(torch.rand(3, 3, 16, 16), Sampling())
