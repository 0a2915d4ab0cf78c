"""Settings: what is accepted, and that each refusal names its key."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from biox.config import load_settings

ROOT = Path(__file__).parents[1]


@pytest.fixture
def content():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def load(content, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_settings(path)


def put(content, key, value):
    *path, last = key.split(".")
    for name in path:
        content = content[name]
    content[last] = value


def test_the_projects_own_settings_are_valid_and_stay_as_they_are():
    settings = load_settings(ROOT / "params.yaml")
    assert len([d for d in settings.directions.values() if d.new_model is None]) == 12
    assert settings.keys_of("isruc") == ["ecg", "eeg"]
    assert settings.keys_of("wesad")[:2] == ["ecg", "ppg"] and len(settings.keys_of("wesad")) == 7
    with pytest.raises(ValidationError, match="frozen"):
        settings.bridge.rank = 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bridge", {}, "bridge.rank: expected a value, found none"),
        ("bridge.rnak", 4, "rnak: unknown key"),
        ("bridge.lr", "1e-4", r"lr: .*found '1e-4' \(YAML needs a decimal point, as in"),
        ("bridge.lr", 0, "lr: .*greater than 0, found 0"),
        ("bridge.rank", True, "rank: .*valid integer, found True"),
        ("bridge.rank", "4", "rank: .*valid integer, found '4'"),
        ("bridge.rank", 0, "rank: .*greater than 0, found 0"),
        ("bridge.prototypes", "means", "prototypes: .*'tokens' or 'random', found 'means'"),
        ("bridge.loss", "InfoNCE", "loss: .*'infonce', found 'InfoNCE'"),
        ("bridge.align", "first", "align: .*'input', found 'first'"),
        ("bridge.start", "regression", "start: expected affine: true"),
        ("bridge.epochs", 0, "epochs: expected at least 1 with start: zeros, found 0"),
        ("search.bridge", [], "bridge: .*at least 1 item"),
        ("search.bridge", [1.0e-3, 1.0e-3], r"bridge\W+expected each value once"),
        ("search.students", [0.0], "students.0: .*greater than 0"),
        ("seeds", [0, 0], r"seeds\W+expected each value once"),
        ("seeds", 3, "seeds: .*valid list, found 3"),
        ("threads", 0, "threads: .*greater than 0"),
        ("positions.features", "tokens", "features: .*'flattened', found 'tokens'"),
        ("positions.n_folds", 1, "n_folds: .*greater than or equal to 2"),
        ("positions", None, "positions: .*found None"),
        ("pretrain.mask", 1.5, "mask: .*less than 1, found 1.5"),
        ("pretrain.models.ecg.lr", 0, "lr: .*greater than 0"),
        ("backbones.eeg.widen", "stretch", "widen: .*'extend', found 'stretch'"),
        ("backbones.ecg.checkpoint", 3, "checkpoint: .*valid string, found 3"),
        ("backbones.other", {"name": "labram", "size": "tiny", "checkpoint": None},
         "other.modality: expected one, found none"),
        ("datasets.wesad.source", "orginal", "source: .*found 'orginal'"),
        ("datasets.fog.resampling", "cubic", "resampling: .*'polyphase'"),
        ("datasets.wesad.step", 0, "step: .*greater than 0"),
        ("datasets.wesad.splits.val", ["S2"], ": .*in one split, found S2 in train and val"),
        ("datasets.wesad.splits.val", [], "val: .*at least 1 item"),
        ("datasets.isruc.splits.val", [7], "val.0: .*valid string, found 7"),
        ("datasets.fog.protocol", "by_subject", r"splits: expected \['pair', 'test'"),
        ("directions.fog-emg2eeg.m", -1, "m: .*greater than or equal to 0"),
        ("directions.fog-emg2eeg.dataset", "fgo", "dataset: expected one of .*'fog'.*found 'fgo'"),
        ("directions.fog-emg2eeg.new", "emg", "new: expected a modality other than old, found emg"),
        ("directions.fog-emg2eeg.new_model", "ecg_fm", "new_model: .*of eeg, found one of ecg"),
        ("directions.fog-emg2eeg.models", {"emg": "eeg"}, "models.emg: .*of emg, found one of eeg"),
        ("directions.fog-emg2eeg.bridge", {"rnak": 4}, "bridge.rnak: unknown key"),
        ("directions.fog-emg2eeg.baselines", {"every": 0}, "baselines.every: .*greater than 0"),
        ("controls.positions_in", ["fog"], "positions_in: expected one of .*found 'fog'"),
        ("cardiogan.seconds", 0.5, "seconds: expected at least 128 whole samples"),
        ("ablations.direction", "fog", "direction: expected one of .*, found 'fog'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_in_one_sentence(content, tmp_path, key, value, message):
    put(content, key, value)
    where = key.rpartition(".")[0]
    with pytest.raises(ValueError, match=rf"params.yaml: {where}\.?{message}") as error:
        load(content, tmp_path)
    assert "\n" not in str(error.value) and "Value error" not in str(error.value)


@pytest.mark.parametrize("text", ["a: [1,\n", "- 1\n", "seeds: [0]\nseeds: [1]\n", ""])
def test_foreign_files_are_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    with pytest.raises(FileNotFoundError, match="params.yaml: expected the project's settings"):
        load_settings(path)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"params.yaml: "):
        load_settings(path)


def test_null_means_untrained_and_whole_numbers_are_numbers(content, tmp_path):
    put(content, "backbones.ecg.checkpoint", None)
    put(content, "bridge.lr", 1)
    settings = load(content, tmp_path)
    assert settings.backbone("ecg").checkpoint is None
    assert settings.bridge.lr == 1.0 and isinstance(settings.bridge.lr, float)


OWN = {
    "source": "original", "folder": "x", "seconds": 10.0, "step": 5.0, "condition_per": "recording",
    "reader": "recordings", "picks": {"ecg": ["II"], "ppg": ["PLETH"]}, "classes": ["calm", "busy"],
    "splits": {"train": ["a"], "val": ["b"], "pair": ["c"], "test": ["d"]},
}  # fmt: skip


def with_own(content, **changed):
    content["datasets"]["mine"] = {k: v for k, v in (OWN | changed).items() if v is not None}
    content["directions"]["mine-ecg2ppg"] = {"dataset": "mine", "old": "ecg", "new": "ppg"}
    return content


def test_own_recordings_bring_channels_and_classes(content, tmp_path):
    settings = load(with_own(content), tmp_path)
    mine = settings.dataset("mine")
    assert mine.reader_options() == {"channels": OWN["picks"], "classes": OWN["classes"]}
    assert mine.n_channels("ecg") == 1 and mine.n_channels("emg") is None
    assert settings.dataset("wesad").reader_options() == {}
    change = {"reader": "dreamer", "classes": None, "picks": None, "labels": "arousal"}
    mine = load(with_own(content, **change), tmp_path).dataset("mine")
    assert mine.reader_options() == {"target": "arousal"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["calm"]}, "mine.classes: expected two or more"),
        ({"classes": ["a", "a"]}, r"mine.classes\W+expected each value once"),
        ({"classes": [False, True]}, "mine.classes.0: .*valid string, found False"),
        ({"labels": "joy"}, "mine.labels: .*'dominance', found 'joy'"),
        ({"picks": {"ecg": ["II"]}}, r"mine-ecg2ppg \(picks of mine\): .*found 'ppg'"),
        ({"picks": {"ecg": []}}, "mine.picks.ecg: .*at least 1 item"),
        ({"channels": {"ecg": 2}}, "mine.channels.ecg: expected 1 as in picks, found 2"),
        ({"splits": {"train": ["a"]}}, r"mine.splits: expected \['pair', 'test', 'train', 'val'\]"),
    ],
)
def test_own_recordings_are_checked(content, tmp_path, change, message):
    with pytest.raises(ValueError, match=r"params.yaml: .*" + message) as error:
        load(with_own(content, **change), tmp_path)
    assert "\n" not in str(error.value)


def test_a_direction_has_its_own_values_above_those_of_all(content, tmp_path):
    put(content, "directions.fog-emg2eeg.seeds", [7])
    put(content, "directions.fog-emg2eeg.bridge", {"rank": 3})
    settings = load(content, tmp_path)
    own = settings.for_direction("fog-emg2eeg")
    assert (own.seeds, own.bridge.rank, settings.bridge.rank) == ([7], 3, 4)
    assert own.bridge.epochs == settings.bridge.epochs
    other = settings.for_direction("fog-eeg2emg")
    assert other.bridge == settings.bridge and other.seeds == settings.seeds


def test_models_of_a_direction_are_named_by_key():
    settings = load_settings(ROOT / "params.yaml")
    swapped = settings.direction("wesad-ppg2ecg-ecg_fm")
    assert (swapped.new_key, settings.modality(swapped.new_key)) == ("ecg_fm", "ecg")
    assert settings.direction("wesad-ppg2ecg").new_key == "ecg"
    found = settings.direction("dreamer-ecg2eeg")
    assert (found.old_key, found.new_key) == ("ecg_cbramod", "eeg_cbramod")
    assert settings.keys_of("dreamer") == ["ecg_cbramod", "eeg_cbramod"]
