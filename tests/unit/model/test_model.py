"""The model: masks, next-codec prediction, sub-models against cut-out plain models, generation, files."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from accordion.data.batch import AUDIO, IMAGE, TEXT, VIDEO
from accordion.errors import ArtifactError, ConfigError, DataError
from accordion.model import Model, SubmodelSpec, load_model, parameter_counts, save_model
from accordion.model.attention import (
    BAND,
    Attention,
    Bands,
    BlockRule,
    additive,
    banded,
    draw_hidden_frames,
    group_mask,
)
from accordion.model.flops import row_counts
from accordion.model.losses import Targets, scale_weights
from accordion.model.rope import rope_table
from accordion.model.sampler import Draw
from tests.unit.model.synthetic import small_batch, small_config

TOLERANCE = 1e-5


def build(config=None, seed=3) -> Model:
    model = Model(config or small_config(), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for layer in model.layers:
        layer.moe.bias.normal_(0, 0.1, generator=generator)
    return model


def cut(model: Model, spec: SubmodelSpec) -> Model:
    """The plain model that `spec` keeps of `model`, by slicing its weights."""
    plain = Model(spec.config(model.config)).eval()
    full = model.state_dict()
    for name, tensor in plain.state_dict().items():
        if not name.startswith("layers."):
            tensor.copy_(full[name])
            continue
        _, index, rest = name.split(".", 2)
        source = full[f"layers.{spec.layers[int(index)]}.{rest}"]
        per_expert = rest in ("moe.router", "moe.expert_in", "moe.expert_out", "moe.bias")
        tensor.copy_(source[list(spec.experts[int(index)])] if per_expert else source)
    return plain


SPECS = {
    "full": {},
    "shallow": {"layers": 3},
    "narrow": {"experts": 3},
    "sparse": {"top_k": 1},
    "small": {"layers": 4, "experts": 4, "top_k": 2},
}


@pytest.mark.parametrize("name", SPECS)
def test_a_row_equals_the_cut_out_model_whatever_the_other_rows_run(name):
    model, batch = build(), small_batch(rows=5)
    specs = [SubmodelSpec.nested(model.config, **kept) for kept in SPECS.values()]
    spec = SubmodelSpec.nested(model.config, **SPECS[name])
    row = list(SPECS).index(name)
    with torch.no_grad():
        mixed, plain = model.outputs(batch, specs), cut(model, spec).outputs(batch.select([row]))
    length = batch.modality.shape[1]
    compared = 0
    for mine, at, theirs in (
        (mixed.text, mixed.targets.text_at, plain.text),
        (mixed.vision, mixed.targets.vision_at, plain.vision),
        (mixed.audio, mixed.targets.audio_at, plain.audio),
    ):
        mine = mine[at // length == row]
        assert mine.shape == theirs.shape and len(mine)
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)
        compared += len(mine)
    assert compared > 40


def test_any_subset_of_experts_and_layers_is_exact():
    model, batch = build(), small_batch(rows=1)
    spec = SubmodelSpec((0, 2, 3, 4), ((0, 5), (1, 2, 4), (3,), (0, 1, 2, 3, 4, 5)), (1, 2, 1, 3))
    with torch.no_grad():
        masked, plain = model.outputs(batch, [spec]), cut(model, spec).outputs(batch)
    torch.testing.assert_close(masked.text, plain.text, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(masked.audio, plain.audio, atol=TOLERANCE, rtol=0)


def test_specs_that_are_full_change_nothing():
    model, batch = build(), small_batch()
    with torch.no_grad():
        plain = model.outputs(batch)
        full = model.outputs(batch, [SubmodelSpec.full(model.config)] * len(batch))
    assert torch.equal(plain.text, full.text) and torch.equal(plain.audio, full.audio)


def test_specs_that_are_full_run_the_same_operators():
    class Listed(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.found.append(str(function))
            return function(*args, **(kwargs or {}))

    model, batch = build().train(), small_batch()
    lists = []
    for specs in (None, [SubmodelSpec.full(model.config)] * len(batch)):
        with Listed() as listed:
            sum(model(batch, specs).means.values()).backward()
        lists.append(listed.found)
        model.zero_grad()
    assert lists[0] == lists[1] and len(lists[0]) > 500


def test_attention_in_bands_equals_attention_under_the_whole_mask():
    g = torch.Generator().manual_seed(0)
    attention = Attention(16, 2)
    length = 2 * BAND + 40
    index = torch.arange(length)
    document = (index > 100).long().repeat(2, 1)
    document[1] = (index > 190).long()
    seen = (index <= index.unsqueeze(1)) & (document.unsqueeze(1) == document.unsqueeze(2))  # (2, S, S)
    mask = additive(seen.unsqueeze(1))
    bands = banded(mask)
    assert isinstance(bands, Bands)
    rope = rope_table(index.view(1, -1, 1).expand(2, -1, 3), 8, 1e4)
    x = torch.randn(2, length, 16, generator=g).requires_grad_()
    seed = torch.randn(2, length, 16, generator=g)
    whole, parts = (attention(x, rope, given) for given in (mask, bands))
    torch.testing.assert_close(parts, whole)
    wanted = [x, *attention.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad((parts * seed).sum(), wanted),
        torch.autograd.grad((whole * seed).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert not isinstance(banded(seen.unsqueeze(1)), Bands)


def test_skipped_layers_and_absent_experts_get_no_gradient():
    model, batch = build().train(), small_batch()
    spec = SubmodelSpec.nested(model.config, layers=4, experts=2, top_k=2)
    sum(model(batch, [spec] * len(batch)).means.values()).backward()
    skipped = next(iter(set(range(5)) - set(spec.layers)))
    assert all(weight.grad is None for weight in model.layers[skipped].parameters())
    grad = model.layers[spec.layers[0]].moe.expert_in.grad
    assert grad[:2].abs().sum() > 0 and grad[2:].abs().sum() == 0


def test_nested_members_contain_the_smaller_ones_and_count_their_parameters():
    config = small_config(layers=7)
    kept = [set(SubmodelSpec.nested(config, layers=count).layers) for count in (3, 4, 5, 6, 7)]
    assert all(small < large for small, large in itertools.pairwise(kept))
    assert all({0, 5, 6} <= layers for layers in kept)
    spec = SubmodelSpec.nested(config, layers=4, experts=3, top_k=2)
    sub = spec.config(config)
    assert parameter_counts(sub)[0] == sum(weight.numel() for weight in Model(sub).parameters())
    assert parameter_counts(sub)[1] < parameter_counts(sub)[0] < parameter_counts(config)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"layers": 2}, "layers 2"), ({"layers": 9}, "layers 9"), ({"experts": 2, "top_k": 3}, "top_k 3")],
)
def test_impossible_members_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        SubmodelSpec.nested(small_config(), **changes)


def test_evenly_kept_layers_are_nested_too_and_ranked_experts_are_those_of_the_order():
    config = small_config(layers=9, layer_order="even")
    kept = [SubmodelSpec.nested(config, layers=count).layers for count in range(3, 10)]
    assert all(set(small) < set(large) for small, large in itertools.pairwise(kept))
    assert kept[1] == (0, 3, 7, 8) and kept[2] == (0, 3, 5, 7, 8)
    order = ((3, 1, 0, 2, 5, 4),) * 5
    ranked = small_config(expert_order=order)
    spec = SubmodelSpec.nested(ranked, experts=3, layers=4, top_k=2)
    assert set(spec.experts) == {(0, 1, 3)}
    assert spec.config(ranked).expert_order == ((2, 1, 0),) * 4  # a member of the member keeps the best of these
    with pytest.raises(ConfigError, match="every expert of every layer once"):
        small_config(expert_order=((0, 1),) * 5)


def test_a_twin_runs_in_full_beside_its_row_which_learns_from_it():
    """What one reduced row with a twin minimises, by hand: (1 - w) its own + w KL, and the twin's own."""
    model, batch = build().train(), small_batch(rows=1)
    full, small = SubmodelSpec.full(model.config), SubmodelSpec.nested(model.config, layers=4, experts=3, top_k=2)
    weight = 0.3
    mixed = model(batch, Draw([small], (0,), weight))
    teacher, pupil = model.outputs(batch, [full]), model.outputs(batch, [small])
    own, whole = pupil.losses(), teacher.losses()
    apart = {
        "text": (teacher.text.softmax(-1) * (teacher.text.log_softmax(-1) - pupil.text.log_softmax(-1))).sum(),
        "audio": (teacher.audio.softmax(-1) * (teacher.audio.log_softmax(-1) - pupil.audio.log_softmax(-1))).sum(),
    }
    on, theirs, mine = teacher.vision.sigmoid(), F.logsigmoid(teacher.vision), F.logsigmoid(pupil.vision)
    off = on * (theirs - mine) + (1 - on) * (F.logsigmoid(-teacher.vision) - F.logsigmoid(-pupil.vision))
    video = teacher.targets.video
    apart |= {"image": off[~video].sum(), "video": off[video].sum()}
    for name, part in apart.items():
        expected = whole.sums[name] + (1 - weight) * own.sums[name] + weight * part
        torch.testing.assert_close(mixed.weighed[name], expected, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(mixed.sums[name], whole.sums[name] + own.sums[name], rtol=1e-4, atol=1e-3)
        assert mixed.counts[name] == 2 * own.counts[name]
    alone = model(batch, Draw([small], (0,), 1.0))
    grad = torch.autograd.grad(alone.weighed["text"], model.heads.text.weight)[0]
    assert torch.isfinite(grad).all() and grad.any()


def test_a_teacher_gets_no_gradient_from_its_pupil():
    """With weight 1 the pupil's loss alone moves only what the pupil runs: a layer it skips learns as without it."""
    model, batch = build().train(), small_batch(rows=1)
    small = SubmodelSpec.nested(model.config, layers=3)
    skipped = next(iter(set(range(5)) - set(small.layers)))
    weight = model.layers[skipped].attention.out.weight
    taught = torch.autograd.grad(model(batch, Draw([small], (0,), 1.0)).weighed["text"], weight)[0]
    alone = torch.autograd.grad(model(batch).sums["text"], weight)[0]
    torch.testing.assert_close(taught, alone, rtol=1e-4, atol=1e-6)


def test_isolated_modalities_use_their_own_experts_and_cannot_be_narrowed():
    config = small_config(experts=8, top_k=2, isolated=True)
    model, batch, seen = build(config), small_batch(rows=2), []
    with torch.no_grad():
        model.outputs(batch, observe=lambda *call: seen.append(call))
    kinds = batch.modality.reshape(-1)
    for _, positions, choice in seen:
        for kind, parts in ((TEXT, {0, 1}), (IMAGE, {2}), (VIDEO, {2}), (AUDIO, {3})):
            assert set((choice[kinds[positions] == kind] % 4).unique().tolist()) <= parts
    with pytest.raises(ConfigError, match="isolated"):
        SubmodelSpec.nested(config, experts=4)
    with pytest.raises(ConfigError, match="four times top_k"):
        small_config(experts=6, isolated=True)


def test_a_spec_without_a_top_layer_is_refused():
    config = small_config()
    with pytest.raises(ConfigError, match="always stay"):
        SubmodelSpec((0, 1, 2, 3), ((0,),) * 4, (1,) * 4).check(config)


def test_the_mask_is_causal_between_groups_bidirectional_within_and_walled_by_documents():
    batch = small_batch(rows=2)
    mask = group_mask(batch, window=1)[0, 0]
    document, group, kind, frame = (getattr(batch, n)[0] for n in ("document", "group", "modality", "frame"))
    for query in range(len(mask)):
        for key in range(len(mask)):
            allowed = document[query] == document[key] and group[key] <= group[query] and kind[key] > 0
            if kind[query] == VIDEO and kind[key] == VIDEO and frame[query] - frame[key] > 1:
                allowed = False
            assert mask[query, key] == bool(allowed or query == key), (query, key)


def test_no_prediction_sees_the_future():
    """Changing a position's inputs and targets leaves every earlier group's logits as they were."""
    model, batch = build(), small_batch(rows=1)
    with torch.no_grad():
        before = model.outputs(batch)
    for kind, column in ((IMAGE, "vision_input"), (VIDEO, "vision_input"), (AUDIO, "codes")):
        at = int((batch.modality[0] == kind).nonzero()[-1])
        changed = batch.select([0])
        getattr(changed, column)[0, at] = (getattr(changed, column)[0, at] + 1) % 7
        with torch.no_grad():
            after = model.outputs(changed)
        earlier = batch.group[0] < batch.group[0, at]
        for name, positions in (("text", "text_at"), ("vision", "vision_at"), ("audio", "audio_at")):
            keep = earlier[getattr(before.targets, positions)]
            assert torch.equal(getattr(before, name)[keep], getattr(after, name)[keep]), (kind, name)


def test_an_audio_code_depends_on_the_codes_above_it_only():
    """Next-codec prediction: the logits of level q see the true codes 1..q-1 of the same frame, not q and later."""
    model = build(small_config(audio_levels=3))
    batch = small_batch(rows=1)
    columns = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    columns["codes"] = torch.cat((batch.codes, batch.codes[..., :1]), -1)
    columns["target_codes"] = torch.cat((batch.target_codes, batch.target_codes[..., :1]), -1)
    batch = type(batch).from_columns(columns)
    with torch.no_grad():
        before = model.outputs(batch).audio
        last = int((batch.target_codes[0, :, 0] >= 0).nonzero()[-2])
        batch.target_codes[0, last, 1] = (batch.target_codes[0, last, 1] + 1) % 7
        after = model.outputs(batch).audio
    frame = before.shape[0] - 2
    assert torch.equal(before[frame, :2], after[frame, :2])
    assert not torch.equal(before[frame, 2], after[frame, 2])
    assert torch.equal(before[:frame], after[:frame])


def test_decoding_with_a_cache_equals_the_full_forward():
    model = build()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 50, (3, 12), generator=generator)
    mask = torch.arange(12) >= torch.tensor([[0], [4], [2]])  # left padding
    with torch.no_grad():
        whole = model.text_logits(model.hidden(tokens, mask))
    cache = model.new_cache(3, 12)
    steps = [model.decode(tokens[:, :7], cache, mask[:, :7])]
    steps += [model.decode(tokens[:, at : at + 1], cache) for at in range(7, 12)]
    torch.testing.assert_close(torch.cat(steps, 1)[mask], whole[mask], atol=TOLERANCE, rtol=0)
    alone = model.decode(tokens[1:2, 4:], model.new_cache(1, 8))
    torch.testing.assert_close(alone[0], whole[1, 4:], atol=TOLERANCE, rtol=0)
    with pytest.raises(DataError, match="do not fit"):
        model.decode(tokens[:, :1], cache)


def test_text_hidden_equals_the_training_path_and_padding_is_ignored():
    model, batch = build(), small_batch(rows=1)
    at = (batch.document[0] == 3).nonzero().squeeze(1)
    tokens = batch.token[:, at]
    with torch.no_grad():
        outputs = model.outputs(batch)
        expected = outputs.text[-(len(at) - 1) :]
        padded = torch.cat((tokens, torch.zeros(1, 3, dtype=torch.long)), 1)
        mask = torch.arange(padded.shape[1]).unsqueeze(0) < len(at)
        for given, keep in ((tokens, torch.ones_like(tokens, dtype=torch.bool)), (padded, mask)):
            logits = model.text_logits(model.hidden(given, keep))[0, : len(at) - 1]
            torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        both = model.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), bidirectional=True)
        assert not torch.allclose(both[0, 0], model.hidden(tokens, tokens >= 0)[0, 0])


def test_the_exportable_form_gives_the_same_states():
    model = build()
    tokens = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9).unsqueeze(0) < torch.tensor([[9], [5]])
    with torch.no_grad():
        grouped = model.hidden(tokens, mask)
        model.exportable = True
        torch.testing.assert_close(model.hidden(tokens, mask)[mask], grouped[mask], atol=TOLERANCE, rtol=0)


def test_the_observer_sees_the_experts_of_every_live_position():
    model, batch = build(), small_batch(rows=3)
    seen = []
    full, shallow = SubmodelSpec.full(model.config), SubmodelSpec.nested(model.config, layers=3, top_k=1)
    with torch.no_grad():
        model.outputs(batch, [full, shallow, full], observe=lambda *call: seen.append(call))
    assert [layer for layer, _, _ in seen] == [0, 1, 2, 3, 4]
    live = batch.modality.reshape(-1) > 0
    rows = live.nonzero().squeeze(1) // batch.modality.shape[1]
    for layer, positions, choice in seen:
        expected = live.nonzero().squeeze(1)
        expected = expected if layer in shallow.layers else expected[rows != 1]
        assert torch.equal(positions, expected)
        used = (choice < model.config.experts[layer]).sum(1)
        assert (used == torch.where(positions // batch.modality.shape[1] == 1, 1, 3)).all()


def test_history_frames_are_hidden_in_training_only():
    model, batch = build(), small_batch()
    with torch.no_grad():
        plain = model(batch).means
        frames = draw_hidden_frames(batch, 0.9, torch.Generator().manual_seed(0))
        hidden = model(batch, hidden_frames=frames).means
    assert plain["video"] != hidden["video"] and torch.equal(plain["image"], hidden["image"])


def test_saved_and_loaded_models_are_the_same(tmp_path):
    model, batch = build(), small_batch()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    with torch.no_grad():
        assert torch.equal(loaded.outputs(batch).text, model.outputs(batch).text)


def test_damaged_or_foreign_files_are_refused(tmp_path):
    save_model(build(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "expert_hidden": 9}))
    with pytest.raises(ArtifactError, match=r"expert_in is \(6, 16, 16\).*wants \(6, 16, 18\)"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": 1}))
    with pytest.raises(ArtifactError, match="colour"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load_model(tmp_path)


def test_a_batch_of_other_tokenizers_is_refused():
    with pytest.raises(DataError, match="5 vision bits"):
        build(small_config(bits=6)).outputs(small_batch())


def test_bits_of_early_scales_count_more_in_what_is_minimised_and_as_they_are_in_what_is_told():
    model, batch = build().train(), small_batch()
    plain, weighed = model(batch), model(batch, scale_weight=1.0)
    for name in ("image", "video"):
        torch.testing.assert_close(weighed.means[name], plain.means[name])
    assert set(plain.aims) == set(plain.means) and plain.aims["image"] is not weighed.aims["image"]
    weight = scale_weights((1, 2, 4), 1.0)
    assert weight.tolist() == pytest.approx([4 * w for w in (3 / 4, 3 / 8, 3 / 16)])
    assert float(weight @ torch.tensor([1.0, 4.0, 16.0])) == pytest.approx(21)
    assert scale_weights((1, 2, 4), 0.0).tolist() == [1, 1, 1]
    outputs = model.outputs(batch)
    bits = F.binary_cross_entropy_with_logits(outputs.vision, outputs.targets.bits, reduction="none").sum(1)
    chosen = ~outputs.targets.video
    own = scale_weights(model.config.scales, 1.0)[outputs.targets.scale]
    by_hand = (bits * own)[chosen].sum() / plain.counts["image"]
    torch.testing.assert_close(weighed.aims["image"], by_hand)


def test_flex_attention_sees_what_the_mask_shows_also_for_selected_rows_and_hidden_frames():
    """Every pair of positions by the rule and by the mask, and the model's outputs both ways, elastic rows too."""
    batch = small_batch(rows=3, seeing=True)
    hidden = draw_hidden_frames(batch, 0.5, torch.Generator().manual_seed(1))
    length = batch.modality.shape[1]
    rule = BlockRule(batch, 1, hidden).index_select(0, torch.tensor([2, 0]))
    mask = group_mask(batch, 1, hidden)[[2, 0], 0]
    row, query, key = torch.meshgrid(torch.arange(2), torch.arange(length), torch.arange(length), indexing="ij")
    assert torch.equal(rule.sees(row, row, query, key), mask)
    model = build(small_config(video_window=1, vit_layers=1))
    specs = [SubmodelSpec.full(model.config), SubmodelSpec.nested(model.config, layers=4, experts=3, top_k=2)]
    given = [specs[0], specs[1], specs[0]]
    with torch.no_grad():
        masked = model.outputs(batch, given, hidden_frames=hidden)
        model.flex = length + 1
        longer = model.outputs(batch, given, hidden_frames=hidden)
        model.flex = length
        flexed = model.outputs(batch, given, hidden_frames=hidden)
    for name in ("text", "vision", "audio"):
        torch.testing.assert_close(getattr(flexed, name), getattr(masked, name), atol=1e-5, rtol=1e-5)
        assert torch.equal(getattr(longer, name), getattr(masked, name))


def test_no_token_after_the_next_is_foretold_across_the_wall_between_documents():
    batch = small_batch()
    before = Targets.of(batch)
    at = int(before.mtp_at[len(before.mtp_at) // 2])
    row, last = divmod(at, batch.document.shape[1])
    document = batch.document.clone()
    document[row, last + 1 :] += 100  # the text goes on in another document
    walled = replace(batch, document=document)
    assert set(before.mtp_at.tolist()) - set(Targets.of(walled).mtp_at.tolist()) == {at}
    assert int(row_counts(batch)[row].sum() - row_counts(walled)[row].sum()) == 1


@pytest.mark.parametrize(("more", "message"), [({"experts": 7}, "experts 7; wants 1 to 6"), ({"top_k": 4}, "top_k 4")])
def test_more_than_the_model_has_is_refused_not_cut_down(more, message):
    with pytest.raises(ConfigError, match=message):
        SubmodelSpec.nested(small_config(), **more)
