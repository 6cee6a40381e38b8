"""A voice that is told: what it reaches, that it is learnt from, and that it begins as any voice."""

from dataclasses import replace

import torch

from accordion.data.batch import VOICE_SIZE
from accordion.model import Model, parameter_counts
from tests.unit.model.synthetic import small_batch, small_config

CONFIG = small_config(voice_size=VOICE_SIZE)


def made() -> Model:
    model = Model(CONFIG, seed=1).eval()
    torch.nn.init.normal_(model.embeddings.voice.weight, generator=torch.Generator().manual_seed(1))
    return model


def test_a_voice_reaches_the_sound_after_it_and_nothing_of_other_documents() -> None:
    batch, model = small_batch(rows=2, told=True), made()
    vectors = batch.voice_vector.clone()
    vectors[1, 0] += 1
    other = replace(batch, voice_vector=vectors)
    with torch.no_grad():
        states = model.embeddings(batch) != model.embeddings(other)
        assert torch.equal(states.any(-1), (batch.voice >= 0) & torch.tensor([[False], [True]]))
        one, two = model.outputs(batch), model.outputs(other)
    apart = (one.audio - two.audio).abs().flatten(1).amax(1) > 1e-5
    assert torch.equal(apart, one.targets.audio_at >= batch.modality.shape[1])  # the second sequence's
    torch.testing.assert_close(one.vision, two.vision)
    said = one.targets.text_at
    within = batch.document.view(-1)[said] == batch.document.view(-1)[(batch.voice.view(-1) >= 0).nonzero()[1]]
    changed = (one.text - two.text).abs().amax(1) > 1e-5
    assert not changed[~(within & (said >= batch.modality.shape[1]))].any()


def test_it_is_learnt_from_and_begins_without_effect() -> None:
    batch, model = small_batch(told=True), Model(CONFIG, seed=1).train()
    untold = replace(batch, voice=torch.full_like(batch.voice, -1))
    assert torch.equal(model.outputs(batch).audio, model.outputs(untold).audio)
    model(batch).means["audio"].backward()
    assert model.embeddings.voice.weight.grad.abs().max() > 0
    plain = Model(small_config(), seed=1)
    for name, weight in plain.named_parameters():  # no draw of the other weights is moved
        assert torch.equal(weight, model.get_parameter(name)), name
    assert plain.embeddings.voice is None


def test_its_parameters_are_counted_and_they_decay() -> None:
    from accordion.train.engine import decays

    model = Model(CONFIG)
    assert parameter_counts(CONFIG)[0] == sum(weight.numel() for weight in model.parameters())
    assert decays("embeddings.voice.weight", model.embeddings.voice.weight)
    assert not decays("embeddings.text.weight", model.embeddings.text.weight)
