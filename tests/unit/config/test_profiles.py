"""Every shipped profile parses; a wrong setting is refused with its path and the remedy; no torch is imported."""

import subprocess
import sys

import pydantic
import pytest

from accordion.config import Profile, load_profile, profile_names
from accordion.errors import ConfigError


def test_the_shipped_profiles_are_the_documented_ones():
    assert {"smoke", "workstation", "cluster"} <= set(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profile_parses_and_survives_json(name):
    profile = load_profile(name)
    assert Profile.from_json(profile.model_dump_json()) == profile


def test_unknown_key_names_its_path_and_the_nearest_known_key():
    with pytest.raises(ConfigError, match=r"smoke\.yaml: pretrain\.stepz: unknown key; did you mean 'steps'\?"):
        load_profile("smoke", ("pretrain.stepz=3",))


def test_unknown_key_deep_in_a_section_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"pretrain\.optimizer\.qqq: unknown key; known keys here: .*learning_rate"):
        load_profile("smoke", ("pretrain.optimizer.qqq=3",))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.model.hidden=wide", r"pretrain\.model\.hidden: got 'wide'; input should be a valid integer"),
        ("pretrain.steps=0", r"pretrain\.steps: got 0; input should be greater than or equal to 1"),
        ("rollout.golden_cosine=1.5", r"rollout\.golden_cosine: got 1\.5; input should be less than or equal to 1"),
        ("runtime.threads=many", r"runtime\.threads: got 'many'"),
        ("pretrain.long_context.share=0.2", r"pretrain\.long_context\.share: got 0\.2; pack\.long_sequence is 0"),
        ("pack.long_sequence=700", r"long_sequence 700 must be a multiple of sequence, 512"),
        ("pretrain.bit_flips.low=0.4", r"low must not be above high"),
        ("pretrain.optimizer.learning_rate=.nan", r"pretrain\.optimizer\.learning_rate"),
        ("pretrain.optimizer.learning_rate=-1", r"learning_rate: got -1; input should be greater than 0"),
        ("pretrain.optimizer.betas=[0.9, 1]", r"betas\.1: got 1; input should be less than 1"),
        ("pretrain.elastic.experts=[]", r"elastic\.experts: got \[\]; wants one or more different sizes from 1 on"),
        ("pretrain.elastic.layers=[8, 8]", r"elastic\.layers: got \[8, 8\]; wants one or more different sizes"),
        ("pretrain.elastic.top_k=[0, 4]", r"elastic\.top_k: got \[0, 4\]; wants one or more different sizes from 1 on"),
        ("pretrain.elastic.experts=[3, 16]", r"pretrain\.elastic: top_k 4 of 3 experts, its fewest; lower it"),
        ("pretrain.elastic.grow_share=1", r"grow_share: got 1; input should be less than 1"),
        (
            "pretrain.elastic.warmup_share=0.8",
            r"pretrain\.elastic: grow_share 0\.3 and warmup_share 0\.8 are more than",
        ),
        ("extract.members=[{name: ../up, layers: 6, experts: 8, top_k: 2}]", r"members\.0\.name: got '\.\./up'"),
        ("extract.members=[{name: a, layers: 6, experts: 1, top_k: 2}]", r"member a: top_k 2 of 1 experts; lower it"),
        (
            "analyse.members=[{name: a, layers: 6, experts: 8, top_k: 2}, {name: a, layers: 8, experts: 8, top_k: 2}]",
            r"two members are called a; give each a name of its own",
        ),
        ("pretrain.steps=[1", r"pretrain\.steps: got '\[1', which is not YAML"),
        ("ingest.seed=-1", r"ingest\.seed: got -1; input should be greater than or equal to 0"),
        ("pretrain.seed=99999999999999999999", r"pretrain\.seed: got 9+; input should be less than 4294967296"),
        ("steps", r"'steps': an override is written section\.key=value"),
    ],
)
def test_wrong_value_names_path_value_and_wish(override, message):
    with pytest.raises(ConfigError, match=message):
        load_profile("smoke", (override,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "pretrain.elastic.experts=[4, 99]",
            r"smoke\.yaml: pretrain\.elastic\.experts: got 99; pretrain\.model has \d+",
        ),
        ("pretrain.model.layers=5", r"pretrain\.family\.full\.layers: got 8; pretrain\.model has 5"),
        ("pretrain.elastic.layers=[4, 8]", r"pretrain\.elastic\.layers: got 4; a sub-model keeps at least 5 layers"),
        ("ingest.audio_rate=16000", r"ingest\.audio_rate: got 16000; tokenizers\.audio\.sample_rate is 8000"),
        ("ingest.image_side=16", r"ingest\.image_side: got 16; tokenizers\.vision\.image_size is 32"),
        ("ingest.clip_side=48", r"ingest\.clip_side: got 48; tokenizers\.vision\.image_size is 32"),
        ("ingest.clip_frames=6", r"ingest\.clip_frames: got 6; wants a multiple of tokenizers\.vision\.frames, 4"),
        ("pack.sequence=128", r"pack\.sequence: got 128; a clip of tokenizers\.vision\.frames .* raise it to 344"),
        ("distil.member=huge", r"distil\.member: got 'huge'; extract\.members are .*small"),
    ],
)
def test_sections_that_do_not_fit_each_other_are_refused_before_any_work(override, message):
    with pytest.raises(ConfigError, match=message):
        load_profile("smoke", (override,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.seeds=[0, 0]", r"study-cpu\.yaml: study: seeds \[0, 0\]: wants different ones"),
        ("study.seeds=[-1, 0]", r"study\.seeds\.0: got -1; input should be greater than or equal to 0"),
        ("study.variants={fixed: {distil_share: 0.0}}", r"study: variants \['fixed'\]: are names of other units"),
        ("study.variants={small: {distil_share: 0.0}}", r"study: variants \['small'\]: are names of other units"),
        (
            "study.variants={a: {distil_shar: 0.0}}",
            r"variants\.a\.distil_shar: unknown key; did you mean 'distil_share'",
        ),
        ("study.recovery_shares=[]", r"study\.recovery_shares: got \[\]"),
        ("study.pretrain.engine=megatron", r"study: pretrain\.engine has no effect in the units of the experiment"),
        ("study.pretrain.long_context.share=0.2", r"study: pretrain\.long_context has no effect in the units"),
        ("study.pretrain.elastic.enabled=false", r"study: pretrain\.elastic\.enabled is false"),
        (
            "study.pretrain.elastic.experts=[8, 99]",
            r"study\.pretrain\.elastic\.experts: got 99; study\.pretrain\.model has",
        ),
        ("study.pretrain.model.top_k=1", r"study\.pretrain\.family\.full\.top_k: got 2; study\.pretrain\.model has 1"),
        (
            "study.variants.random.layers=[3, 8]",
            r"study\.variants\.random\.layers: got 3; a sub-model keeps at least 5",
        ),
    ],
)
def test_an_experiment_that_would_not_say_what_it_seems_to_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_profile("study-cpu", (override,))


def test_settings_that_do_not_go_together_are_told_without_all_the_others():
    with pytest.raises(ConfigError) as error:
        load_profile("study-cpu", ("study.recovery_shares=[0.1, 0.05]",))
    assert str(error.value) == "study-cpu.yaml: study: recovery_shares wants ascending shares above 0 and at most 1"


def test_every_wrong_key_is_reported_at_once():
    with pytest.raises(ConfigError) as error:
        load_profile("smoke", ("pretrain.stepz=3", "rl.grup=4"))
    assert "pretrain.stepz" in str(error.value)
    assert "rl.grup" in str(error.value)


def test_unknown_profile_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"shipped profiles: .*smoke"):
        load_profile("nosuch")


def test_broken_yaml_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("pretrain: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml: not YAML"):
        load_profile(str(path))


def test_settings_are_frozen():
    profile = load_profile("smoke")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        profile.pretrain.steps = 3


def test_override_reaches_its_section_only():
    changed, shipped = load_profile("smoke", ("evaluate.bootstrap=123",)), load_profile("smoke")
    assert changed.evaluate.bootstrap == 123
    assert changed.model_copy(update={"evaluate": shipped.evaluate}) == shipped


def test_configuration_imports_no_torch():
    code = "import accordion.config, sys; sys.exit('torch' in sys.modules or 'flytekit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
