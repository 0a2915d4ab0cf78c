"""Settings: what is accepted, and that each refusal names its key."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from biox.config import load_settings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def content():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def load(content, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_settings(path)


def test_the_projects_own_settings_are_valid_and_frozen():
    settings = load_settings(ROOT / "params.yaml")
    assert len(settings.directions) == 6 and len(settings.seeds) == 3
    assert settings.modalities("wesad") == ("ecg", "ppg")
    with pytest.raises(AttributeError):
        settings.bridge.rank = 3


def put(content, key, value):
    *path, last = key.split(".")
    for name in path:
        content = content[name]
    content[last] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bridge.rnak", 4, r"bridge.rnak: expected one of .*'rank'.*unknown key"),
        ("bridge.lr", "1e-4", r"bridge.lr: expected a number such as 1.0e-4, found '1e-4'"),
        ("search.lr", [], r"search.lr: expected different numbers above 0"),
        ("search.lr", [1.0e-3, 1.0e-3], r"search.lr: expected different numbers above 0"),
        ("search.lr", [0.0], r"search.lr: expected different numbers above 0"),
        ("bridge.lr", 0, r"bridge.lr: expected a number above 0, or null"),
        ("bridge.rank", 2.0, r"bridge.rank: expected a whole number, found 2.0"),
        ("bridge.rank", True, r"bridge.rank: expected a whole number, found True"),
        ("bridge.rank", 0, r"bridge.rank: expected a number above 0, found 0"),
        ("bridge.prototypes", "means", r"bridge.prototypes: expected one of .*'tokens'"),
        ("bridge.layout", "eq6", r"bridge.layout: expected one of .*'tokens', 'released'"),
        ("bridge.loss", "InfoNCE", r"bridge.loss: expected one of .*'infonce'"),
        ("bridge.align", "first", r"bridge.align: expected one of .*'input'"),
        ("bridge.temperature", 0, r"bridge.temperature: expected a number above 0, found 0"),
        (
            "positions",
            {"cka": "biased", "features": "streamed", "probe": "by_subject", "n_folds": 5},
            r"positions.cka: expected debiased, all that can be had of streamed",
        ),
        ("positions.features", "tokens", r"positions.features: expected one of .*'flattened'"),
        ("datasets.fog.resampling", "cubic", r"datasets.fog.resampling: expected .*'polyphase'"),
        ("backbones.eeg.widen", "stretch", r"backbones.eeg.widen: expected one of .*'extend'"),
        ("pretrain.mask", 1.5, r"pretrain.mask: expected a share in \[0, 1\), found 1.5"),
        ("pretrain.lr.ecg", 0, r"pretrain.lr.ecg: expected a number above 0, found 0"),
        ("seeds", [0, 0], r"seeds: expected distinct numbers"),
        ("seeds", 3, r"seeds: expected a list, found 3"),
        (
            "directions.fog-emg2eeg.bridge",
            {"rnak": 4},
            r"directions.fog-emg2eeg.bridge.rnak: .*unknown key",
        ),
        (
            "directions.fog-emg2eeg.bridge",
            {"lr": "1e-4"},
            r"directions.fog-emg2eeg.bridge.lr: expected a num",
        ),
        (
            "directions.fog-emg2eeg.bridge",
            3,
            r"directions.fog-emg2eeg.bridge: expected names with values",
        ),
        (
            "directions.fog-emg2eeg.m",
            -1,
            r"directions.fog-emg2eeg.m: expected a layer, counted from 0",
        ),
        ("directions.fog-emg2eeg.dataset", "fgo", r"directions.fog-emg2eeg.dataset: expected"),
        ("directions.fog-emg2eeg.new", "emg", r"directions.fog-emg2eeg.new: expected a modality"),
        ("datasets.wesad.source", "orginal", r"datasets.wesad.source: expected one of"),
        ("datasets.wesad.splits.val", ["S2"], r"datasets.wesad.splits.*found 'S2 again"),
        ("datasets.wesad.splits.val", [], r"datasets.wesad.splits.val: expected at least one"),
        ("datasets.isruc.splits.val", [7], r"datasets.isruc.splits.val\[0\]: expected a text"),
        ("datasets.wesad.step", 0, r"datasets.wesad.step: expected a step above 0"),
        ("backbones.ecg.checkpoint", 3, r"backbones.ecg.checkpoint: expected a text"),
        ("compute.autocast", 1, r"compute.autocast: expected true or false, found 1"),
        ("compute.threads", 0, r"compute.threads: expected a number above 0, found 0"),
        ("compute.at_most", 1e6, r"compute.at_most: expected a whole number, found 1000000.0"),
        ("compute.gpus", 1, r"compute.gpus: expected one of .*unknown key"),
        ("positions", None, r"positions: expected names with values, found None"),
    ],
)
def test_what_is_wrong_is_named(content, tmp_path, key, value, message):
    put(content, key, value)
    with pytest.raises(ValueError, match=r"params.yaml: " + message) as error:
        load(content, tmp_path)
    assert "\n" not in str(error.value)


OWN = {
    "source": "original", "folder": "x", "seconds": 10.0, "step": 5.0, "condition_per": "recording",
    "reader": "recordings", "picks": {"ecg": ["II"], "ppg": ["PLETH"]}, "classes": ["calm", "busy"],
    "splits": {"train": ["a"], "val": ["b"], "pair": ["c"], "test": ["d"]},
}  # fmt: skip


def with_own(content, **changed):
    data = {k: v for k, v in (OWN | changed).items() if v is not None}
    content["real_datasets"]["mine"] = data
    content["real_directions"]["mine-ecg2ppg"] = {"dataset": "mine", "old": "ecg", "new": "ppg"}
    return content


def test_own_recordings_bring_channels_and_classes(content, tmp_path):
    settings = load(with_own(content), tmp_path)
    mine = settings.dataset("mine")
    assert settings.modalities("mine") == ("ecg", "ppg")
    assert mine.reader_options() == {
        "channels": {"ecg": ("II",), "ppg": ("PLETH",)}, "classes": ("calm", "busy")
    }  # fmt: skip
    assert (mine.n_channels("ecg"), settings.dataset("eegmat").n_channels("eeg")) == (1, 12)
    assert settings.dataset("wesad").reader_options() == {}
    assert settings.dataset("wesad").n_channels("ecg") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picks": None}, r"mine.picks: expected a value for the reader recordings, found 'none'"),
        ({"classes": None}, r"mine.classes: expected a value for the reader recordings"),
        ({"classes": ["calm"]}, r"mine.classes: expected two or more different names, found \['ca"),
        ({"classes": ["a", "a"]}, r"mine.classes: expected two or more different names"),
        ({"classes": [False, True]}, r"mine.classes\[0\]: expected a text, found False"),
        (
            {"labels": "valence"},
            r"mine.labels: expected none for the reader recordings",
        ),
        ({"labels": "joy"}, r"mine.labels: expected one of \['valence'.*found 'joy'"),
        ({"source": "simulated"}, r"mine.source: expected original for the reader recordings"),
        ({"reader": "bidmc"}, r"mine.picks: expected none for the reader bidmc, found {'ecg': "),
        ({"reader": None}, r"mine.picks: expected none for the reader mine"),
        ({"picks": {"ecg": ["II"]}}, r"ecg2ppg: expected modalities out of \['ecg'\] \(picks\)"),
        ({"picks": {"ecg": []}}, r"mine.picks.ecg: expected channels, each once, found \[\]"),
        ({"picks": {"ecg": ["a", "a"]}}, r"mine.picks.ecg: expected channels, each once"),
        ({"channels": {"ecg": 2}}, r"mine.channels.ecg: expected 1 as in picks, found 2"),
    ],
)
def test_what_a_reader_needs_is_checked(content, tmp_path, change, message):
    with pytest.raises(ValueError, match=r"params.yaml: .*" + message) as error:
        load(with_own(content, **change), tmp_path)
    assert "\n" not in str(error.value)


def test_dreamer_takes_labels_and_leads(content, tmp_path):
    plain = {"reader": "dreamer", "classes": None, "picks": None}
    change = plain | {"labels": "arousal", "picks": {"ecg": ["ECG 1"]}}
    mine = load(with_own(content, **change), tmp_path).dataset("mine")
    assert mine.reader_options() == {"channels": {"ecg": ("ECG 1",)}, "target": "arousal"}
    assert load(with_own(content, **plain), tmp_path).dataset("mine").reader_options() == {}


def test_a_missing_key_is_named(content, tmp_path):
    del content["bridge"]["rank"]
    with pytest.raises(ValueError, match=r"bridge.rank: expected a value, found 'no such key'"):
        load(content, tmp_path)


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="params.yaml"):
        load_settings(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1,\n")
    with pytest.raises(ValueError, match="expected YAML"):
        load_settings(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="settings: expected names with values"):
        load_settings(tmp_path / "params.yaml")


def test_null_means_untrained_and_whole_numbers_are_numbers(content, tmp_path):
    put(content, "backbones.ecg.checkpoint", None)
    put(content, "bridge.lr", 1)
    settings = load(content, tmp_path)
    assert settings.backbones["ecg"].checkpoint is None
    assert settings.bridge.lr == 1.0 and isinstance(settings.bridge.lr, float)


def test_without_its_section_compute_all_but_threads_and_workers_stay(content, tmp_path):
    written = load(content, tmp_path).compute
    del content["compute"]
    assert load(content, tmp_path).compute == replace(written, threads=None, workers=1)


def test_override_checks_like_the_file():
    settings = load_settings(ROOT / "params.yaml")
    assert settings.override("bridge", {"rank": 5}).bridge.rank == 5
    with pytest.raises(ValueError, match=r"bridge.rank: expected a whole number, found '5'"):
        settings.override("bridge", {"rank": "5"})


def test_the_pipeline_lists_the_directions_of_the_settings():
    """Table 1 depends on each direction by name; DVC cannot expand a list of paths."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    bridges = {d.split("/")[-1] for d in stages["table1"]["deps"] if d.startswith("data/bridges")}
    assert bridges == set(load_settings(ROOT / "params.yaml").directions)
