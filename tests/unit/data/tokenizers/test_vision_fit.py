"""Training the vision tokenizer: bit switching, dropped scales and bits, optional losses, the 3D phase, seeds."""

import pytest
import torch

from accordion.config.data import VisionLossConfig, VisionTokenizerConfig
from accordion.data.tokenizers.vision import CausalConv, VisionTokenizer, accumulate, quantize
from accordion.data.tokenizers.vision_features import WIDTH, Features, feature_distance
from accordion.data.tokenizers.vision_fit import Pictures, active_bits, draw_kept, fit, vary
from accordion.data.tokenizers.vision_losses import Adversary, Kept, Objective, bit_entropies, quantize_kept
from accordion.errors import ConfigError, TrainingDiverged

TINY = VisionTokenizerConfig(channels=8, bits=6, low_bits=(2, 4), steps=6, batch=4, average=0.5)


def pictures(seed: int = 0) -> Pictures:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (6, 3, 4, 4), generator=draw, dtype=torch.uint8)
    clips = torch.randint(256, (5, 4, 3, 4, 4), generator=draw, dtype=torch.uint8)
    return Pictures(*(part.repeat_interleave(8, -1).repeat_interleave(8, -2) for part in (images, clips)))


def changed(**values: object) -> VisionTokenizerConfig:
    return VisionTokenizerConfig.parse({**TINY.model_dump(), **values})


def told(model: VisionTokenizer, frames: int = 2, scales: int = 4, bits: int | None = None) -> Kept:
    return Kept(torch.full((frames,), scales), torch.full((frames,), bits or model.config.bits))


def restored(model: VisionTokenizer, frames: torch.Tensor, kept: Kept) -> torch.Tensor:
    return model.pixels(quantize_kept(model.latent(frames), model.config.scales, kept).through)


def test_bits_switch_on_by_schedule() -> None:
    config = changed(steps=100, switch_share=0.4)
    assert [active_bits(config, step) for step in (0, 19, 20, 39, 40, 99)] == [2, 2, 4, 4, 6, 6]
    assert {active_bits(changed(low_bits=()), step) for step in range(6)} == {6}


@pytest.mark.parametrize("quantizer", ["lfq", "bsq"])
def test_a_switch_to_more_bits_changes_nothing_at_first(quantizer: str) -> None:
    config = changed(low_bits=[4], switch_share=1.0, video_share=0.0, quantizer=quantizer)  # never sees its 6 bits
    model, _ = fit(config, pictures())
    frames = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    low, high = (restored(model, frames, told(model, bits=bits)) for bits in (4, 6))
    assert torch.equal(low, high)
    bits = model.encode(frames)
    assert torch.equal(model.decode(bits), model.decode([grid[..., :4] for grid in bits]))
    assert len({tuple(grid) for grid in bits[-1][..., 4:].flatten(0, 3).tolist()}) > 1  # yet they already say something
    longer, _ = fit(config.model_copy(update={"switch_share": 0.5}), pictures())
    bits = longer.encode(frames)
    assert not torch.equal(longer.decode(bits), longer.decode([grid[..., :4] for grid in bits]))


def test_later_bits_do_not_change_what_earlier_ones_say() -> None:
    model, _ = fit(changed(quantizer="bsq"), pictures())
    frames = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = model.encode(frames)
    with torch.no_grad():
        model.encoder[-1].present.weight[4:] += 1.0  # type: ignore[union-attr,operator]
    for old, new in zip(before, model.encode(frames), strict=True):
        assert torch.equal(old[..., :4], new[..., :4])


def test_bsq_latents_lie_on_a_sphere_for_each_budget() -> None:
    torch.manual_seed(0)
    model = VisionTokenizer(changed(quantizer="bsq"))
    latent = model.latent(torch.rand(2, 1, 3, 32, 32))
    for low, high in ((0, 2), (2, 4), (4, 6)):
        torch.testing.assert_close(latent[..., low:high].square().mean(-1), torch.ones(2, 1, 8, 8))


def test_kept_scales_and_bits_are_a_prefix_of_the_code() -> None:
    latent = torch.randn(2, 2, 8, 8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = quantize_kept(latent, TINY.scales, Kept(torch.tensor([4, 2]), torch.tensor([6, 4])))
    bits = quantize(latent.detach(), TINY.scales)
    torch.testing.assert_close(found.code[0], accumulate(bits)[1][0])
    coarse = [grid if scale < 2 else grid.new_full(grid.shape, -1) for scale, grid in enumerate(bits)]
    assert torch.count_nonzero(found.code[1, ..., 4:]) == 0
    assert not torch.equal(found.code[1, ..., :4], accumulate(bits)[1][1, ..., :4]) and coarse
    found.through.sum().backward()
    assert latent.grad is not None
    assert torch.equal(latent.grad[0], torch.ones(2, 8, 8, 6))  # straight through
    assert torch.count_nonzero(latent.grad[1, ..., 4:]) == 0  # what is not told is not asked


def test_dropping_is_drawn_per_frame_and_can_be_off() -> None:
    draw = torch.Generator().manual_seed(0)
    kept = draw_kept(changed(drop_scales=0.5, drop_bits=0.5), 400, 6, draw)
    assert set(kept.scales.tolist()) == {1, 2, 3, 4} and set(kept.bits.tolist()) == {2, 4, 6}
    assert 0.55 < float((kept.scales == 4).float().mean()) < 0.7
    assert set(draw_kept(changed(drop_bits=1.0), 50, 4, draw).bits.tolist()) == {2, 4}  # never above the active bits
    kept = draw_kept(changed(drop_scales=0.0, drop_bits=0.0), 50, 4, draw)
    assert set(kept.scales.tolist()) == {4} and set(kept.bits.tolist()) == {4}


def test_a_one_frame_clip_is_exactly_the_image_after_training_on_clips() -> None:
    model, _ = fit(changed(steps=12, video_share=0.5), pictures())
    assert any(
        torch.count_nonzero(kernel.weight)
        for part in model.modules() if isinstance(part, CausalConv) for kernel in part.past
    )  # fmt: skip
    flat = VisionTokenizer(model.config).eval()  # the 2D network
    flat.load_state_dict({k: torch.zeros_like(v) if ".past." in k else v for k, v in model.state_dict().items()})
    image = pictures(1).images[:2, None].float() / 255
    assert torch.equal(model.latent(image), flat.latent(image))
    assert torch.equal(model.decode(model.encode(image)), flat.decode(model.encode(image)))
    clip = pictures(1).clips[:1].float() / 255
    assert not torch.allclose(model.latent(clip)[:, 1:], flat.latent(clip)[:, 1:])


def test_the_same_seed_gives_the_same_tokenizer_and_another_does_not() -> None:
    first, second = (fit(TINY, pictures())[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = fit(changed(seed=1), pictures())[0].state_dict()
    assert not torch.equal(first["encoder.0.present.weight"], other["encoder.0.present.weight"])


def test_entropies_tell_sure_from_unsure_and_used_from_stuck() -> None:
    far = torch.tensor([5.0, -5.0]).repeat(50).view(1, 10, 10, 1)
    sure, used = bit_entropies([far], 1)
    assert float(sure) < 0.01 and float(used) == pytest.approx(0.6931, abs=1e-3)
    sure, used = bit_entropies([torch.zeros(1, 10, 10, 1)], 1)
    assert float(sure) == pytest.approx(0.6931, abs=1e-3)
    sure, used = bit_entropies([far.abs()], 1)
    assert float(used) < 0.01
    _, used = bit_entropies([torch.cat([far, far.abs()], -1)], 1)
    assert float(used) == pytest.approx(0.6931, abs=1e-3)  # bits beyond the active ones are not judged


ALL = {"entropy": 0.1, "perceptual": 0.1, "semantic": 0.1, "adversarial": 0.1, "adversarial_start": 0.0}


def test_every_loss_can_be_on_and_is_reported() -> None:
    _, loss = fit(changed(losses=ALL, augment=0.5), pictures())
    assert set(loss) == {
        "all", "absolute", "squared", "commitment", "entropy", "perceptual", "semantic", "adversarial"
    }  # fmt: skip
    assert all(torch.isfinite(torch.tensor(value)) for value in loss.values())


def test_a_weight_of_zero_leaves_the_term_and_its_networks_out() -> None:
    off = dict.fromkeys(("squared", "commitment", "entropy", "diversity", "perceptual", "semantic"), 0.0)
    _, loss = fit(changed(losses=off), pictures())
    assert set(loss) == {"all", "absolute"}
    objective = Objective(VisionLossConfig.parse(off), 16)
    assert objective.features is None and objective.meaning is None


@pytest.mark.parametrize("name", ["perceptual", "semantic"])
def test_feature_losses_reach_the_encoder(name: str) -> None:
    weights = dict.fromkeys(("absolute", "squared", "commitment", "diversity"), 0.0) | {name: 1.0}
    torch.manual_seed(0)
    model = VisionTokenizer(TINY)
    objective = Objective(VisionLossConfig.parse(weights), 16)
    terms, _ = objective(model, pictures().images[:2, None].float() / 255, told(model))
    terms[name].backward()
    assert set(terms) == {name}
    gradient = model.encoder[0].present.weight.grad  # type: ignore[union-attr]
    assert gradient is not None and float(gradient.abs().sum()) > 0
    assert objective.features is not None and all(p.grad is None for p in objective.features.parameters())


def test_the_critic_learns_to_tell_and_its_term_is_in_proportion() -> None:
    torch.manual_seed(0)
    adversary = Adversary(VisionLossConfig(adversarial=0.5), 8, 2e-3)
    real, fake = torch.rand(8, 1, 3, 32, 32), torch.full((8, 1, 3, 32, 32), 0.5)
    losses = [adversary.learn(real, fake) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]
    layer = torch.nn.Conv2d(3, 3, 1)
    restored = layer(fake[:, 0]).unsqueeze(1)
    others = (restored - real).square().mean()
    term = adversary.term(restored, others, layer.weight)
    pull = torch.autograd.grad(term, layer.weight, retain_graph=True)[0].norm()
    wanted = 0.5 * torch.autograd.grad(others, layer.weight)[0].norm()
    torch.testing.assert_close(pull, wanted, rtol=0.05, atol=1e-6)


def test_features_are_the_trained_net_and_frozen() -> None:
    net = Features().train()
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0, 8:24, 8:24] = 1.0
    layers = net(image)
    assert [tuple(layer.shape[1:]) for layer in layers] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (WIDTH, 4, 4)]
    near, far = (image + 0.02).clamp(0, 1), image.flip(1)
    assert float(feature_distance(layers, layers)) == 0
    assert 0 < float(feature_distance(layers, net(near))) < float(feature_distance(layers, net(far)))


def test_divergence_is_named() -> None:
    with pytest.raises(TrainingDiverged, match="lower its learning_rate"):
        fit(changed(learning_rate=1e30, steps=12), pictures())


@pytest.mark.parametrize("values", [{"low_bits": [4, 2]}, {"low_bits": [6]}, {"low_bits": [0]}, {"losses": {"vgg": 1}}])
def test_settings_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"low_bits|vgg"):
        changed(**values)


def test_augmentation_keeps_the_range_and_leaves_others_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    clips = torch.rand(16, 2, 3, 32, 32, generator=draw)
    varied = vary(clips, 0.5, draw)
    same = (varied == clips).flatten(1).all(1)
    assert varied.shape == clips.shape and float(varied.min()) >= 0 and float(varied.max()) <= 1
    assert 0 < int(same.sum()) < 16
