"""params.yaml -> frozen, typed settings; the one place where settings are read.

Every section is a dataclass; its annotations are the schema. Unknown keys, wrong types and
impossible values are refused with one sentence that names the key.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from biox.ablation_settings import Ablations
from biox.baselines.cardiogan_settings import CardioGAN
from biox.baselines.settings import Baselines
from biox.compute import Compute
from biox.control_settings import Controls
from biox.schema import build, check, read_yaml
from biox.table3_settings import Table3

Modality = Literal["ecg", "ppg", "eeg", "emg"]

READER_KEYS = {
    "recordings": {"picks": True, "classes": True},
    "dreamer": {"picks": False, "labels": False},
}
"""Keys of a dataset that only some readers take, and whether they must be there."""


@dataclass(frozen=True)
class Direction:
    """A transfer: labels in modality `old`, none in modality `new`, both recorded in `dataset`."""

    dataset: str
    old: Modality
    new: Modality
    m: int | None = None  # new layer to read after; null: chosen by probing
    l: int | None = None  # old layer to write before; null: chosen by CKA
    bridge: dict[str, Any] = field(default_factory=dict)  # put over the section `bridge`

    def __post_init__(self):
        check(self.old != self.new, "new", "a modality other than old", self.new)
        for name in ("m", "l"):
            value = getattr(self, name)
            check(value is None or value >= 0, name, "a layer, counted from 0", value)


@dataclass(frozen=True)
class Dataset:
    """Where recordings lie, how windows are cut, and which subjects form which split."""

    source: Literal["simulated", "original"]
    folder: str
    seconds: float  # length of a window
    step: float  # from one window's start to the next, in seconds
    condition_per: Literal["recording", "window"]  # what filters and z-scores see at once
    # Subjects: train (teacher), val, pair (bridge, no labels), test; or all, if split by time.
    splits: dict[str, tuple[str, ...]]
    protocol: Literal["by_subject", "blocked_windows", "shuffled_windows"] = "by_subject"
    channels: dict[Modality, int] = field(default_factory=dict)  # where not the backbone's default
    reader: str | None = None  # who reads it: a key of biox.data.READERS; null: its own name
    # For your own recordings, and DREAMER's leads: channels by modality, as the files name them.
    picks: dict[Modality, tuple[str, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()  # for your own recordings: the labels, in the order of indices
    labels: Literal["valence", "arousal", "dominance"] | None = None  # for DREAMER
    resampling: Literal["linear", "polyphase"] = "linear"

    def __post_init__(self):
        check(self.seconds > 0, "seconds", "a length above 0", self.seconds)
        check(self.step > 0, "step", "a step above 0", self.step)
        expected = {"all"} if self.protocol != "by_subject" else {"train", "val", "pair", "test"}
        check(set(self.splits) == expected, "splits", sorted(expected), sorted(self.splits))
        seen: dict[str, str] = {}
        for split, subjects in self.splits.items():
            check(len(subjects) > 0, f"splits.{split}", "at least one subject", list(subjects))
            for subject in subjects:
                other = seen.setdefault(subject, split)
                check(
                    other == split and list(subjects).count(subject) == 1,
                    f"splits.{split}",
                    "each subject in one split, once",
                    f"{subject} again (also in {other})",
                )
        for modality, names in self.picks.items():
            key, n = f"picks.{modality}", self.channels.get(modality, len(names))
            check(0 < len(set(names)) == len(names), key, "channels, each once", list(names))
            check(n == len(names), f"channels.{modality}", f"{len(names)} as in picks", n)
        distinct = len(set(self.classes)) == len(self.classes) != 1
        check(distinct, "classes", "two or more different names", list(self.classes))

    def n_channels(self, modality: str) -> int | None:
        """Number of channels of a modality's windows; None: the backbone's default."""
        picked = self.picks.get(modality)
        return len(picked) if picked else self.channels.get(modality)

    def reader_options(self) -> dict[str, Any]:
        """What the reader is told besides a folder and a subject."""
        given = {"channels": self.picks, "classes": self.classes, "target": self.labels}
        return {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class BackboneChoice:
    """Which foundation model reads a modality, at which size, with which weights."""

    name: str
    size: str
    checkpoint: str | None  # a file; null: untrained
    # For labram: how the 16 rows of the published time embedding serve longer windows.
    widen: Literal["interpolate", "extend"] | None = None


@dataclass(frozen=True)
class Simulate:
    """Simulated recordings."""

    seed: int


@dataclass(frozen=True)
class Pretrain:
    """Pretraining of the tiny backbones on simulated windows of other subjects."""

    seconds: dict[Modality, tuple[float, ...]]  # lengths of windows, by modality
    minutes: dict[Modality, float]  # of signal at each of these lengths
    epochs: dict[Modality, int]
    batch: int
    lr: dict[Modality, float]
    mask: float  # share of tokens hidden for masked reconstruction
    reconstruction: dict[Modality, float]  # weight of that loss
    common: dict[Modality, float]  # weight of keeping small what all windows have in common
    weights: dict[Modality, dict[str, float]]  # of the simulator's parameters; 1 if not named
    seed: int

    def __post_init__(self):
        _positive(self, "batch")
        for name in ("minutes", "epochs", "lr", "reconstruction"):
            for modality, value in getattr(self, name).items():
                check(value > 0, f"{name}.{modality}", "a number above 0", value)
        for modality, lengths in self.seconds.items():
            good = len(lengths) > 0 and min(lengths) > 0
            check(good, f"seconds.{modality}", "lengths above 0", list(lengths))
        for modality, weight in self.common.items():
            check(weight >= 0, f"common.{modality}", "a weight of at least 0", weight)
        check(0 <= self.mask < 1, "mask", "a share in [0, 1)", self.mask)


@dataclass(frozen=True)
class Teacher:
    """The old modality's task model: which weights learn, by modality, and how."""

    train: dict[Modality, Literal["head", "all"]]
    lr: float
    epochs: int
    batch: int
    seed: int

    def __post_init__(self):
        _positive(self, "lr", "epochs", "batch")


@dataclass(frozen=True)
class Storage:
    """How activations of the frozen models are kept."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # of the old model's last layer
    last: Literal["stored", "recomputed"] = "stored"
    batch: int = 32  # windows

    def __post_init__(self):
        _positive(self, "batch")


@dataclass(frozen=True)
class Positions:
    """Two-stage selection of m (probe) and l (CKA)."""

    cka: Literal["debiased", "biased"]
    probe: Literal["by_subject", "as_published"]
    n_folds: int
    features: Literal["pooled", "flattened", "streamed"] = "pooled"  # what CKA compares

    def __post_init__(self):
        check(self.n_folds >= 2, "n_folds", "at least 2", self.n_folds)
        good = self.features != "streamed" or self.cka == "debiased"
        check(good, "cka", "debiased, all that can be had of streamed features", self.cka)


@dataclass(frozen=True)
class Search:
    """Learning rates that every trained transfer method tries; see `biox.search`."""

    lr: tuple[float, ...] = (3e-4, 1e-3, 3e-3)

    def __post_init__(self):
        distinct = len(set(self.lr)) == len(self.lr) > 0
        check(distinct and min(self.lr) > 0, "lr", "different numbers above 0", list(self.lr))


@dataclass(frozen=True)
class Bridge:
    """The bridge and its training."""

    rank: int
    n_prototypes: int
    prototypes: Literal["tokens", "random"]
    lr: float | None  # of Adam; null: found by `search`
    epochs: int
    batch: int
    layout: Literal["tokens", "released"] = "tokens"  # of what is written into LaBraM
    loss: Literal["cosine", "mae", "infonce"] = "cosine"
    align: Literal["last", "input"] = "last"  # layer whose representations the loss compares
    temperature: float = 0.1  # of infonce alone

    def __post_init__(self):
        _positive(self, "rank", "n_prototypes", "epochs", "batch", "temperature")
        check(self.lr is None or self.lr > 0, "lr", "a number above 0, or null", self.lr)


@dataclass(frozen=True)
class Settings:
    """Everything in params.yaml."""

    seeds: tuple[int, ...]
    device: Literal["auto", "cpu", "cuda"]
    directions: dict[str, Direction]
    real_directions: dict[str, Direction]
    datasets: dict[str, Dataset]
    real_datasets: dict[str, Dataset]
    backbones: dict[Modality, BackboneChoice]
    simulate: Simulate
    pretrain: Pretrain
    teacher: Teacher
    positions: Positions
    bridge: Bridge
    activations: Storage = field(default_factory=Storage)
    compute: Compute = field(default_factory=Compute)
    search: Search = field(default_factory=Search)
    controls: Controls = field(default_factory=Controls)
    baselines: Baselines = field(default_factory=Baselines)
    ablations: Ablations = field(default_factory=Ablations)
    table3: Table3 = field(default_factory=Table3)
    cardiogan: CardioGAN = field(default_factory=CardioGAN)

    def __post_init__(self):
        check(len(set(self.seeds)) == len(self.seeds) > 0, "seeds", "distinct numbers", self.seeds)
        per_modality = {
            "pretrain.seconds": self.pretrain.seconds,
            "pretrain.minutes": self.pretrain.minutes,
            "pretrain.epochs": self.pretrain.epochs,
            "pretrain.lr": self.pretrain.lr,
            "pretrain.reconstruction": self.pretrain.reconstruction,
            "pretrain.common": self.pretrain.common,
            "pretrain.weights": self.pretrain.weights,
            "teacher.train": self.teacher.train,
        }
        for key, values in per_modality.items():
            check(set(values) >= set(self.backbones), key, sorted(self.backbones), sorted(values))
        for name in self.controls.positions_in:
            known = sorted(self.directions | self.real_directions)
            check(name in known, "controls.positions_in", f"names out of {known}", name)
        for where in ("datasets", "real_datasets"):
            for name, dataset in getattr(self, where).items():
                _check_reader(f"{where}.{name}", dataset.reader or name, dataset)
        for name, direction in (self.directions | self.real_directions).items():
            where = "directions" if name in self.directions else "real_directions"
            key, known = f"{where}.{name}", sorted(self.datasets | self.real_datasets)
            try:
                self._merged("bridge", direction.bridge)
            except ValueError as error:
                raise ValueError(f"{key}.{error}") from None
            check(direction.dataset in known, f"{key}.dataset", known, direction.dataset)
            for modality in (direction.old, direction.new):
                check(modality in self.backbones, key, sorted(self.backbones), modality)
                data = self.dataset(direction.dataset)
                known = modality in data.picks or not data.classes
                check(known, key, f"modalities out of {sorted(data.picks)} (picks)", modality)

    def direction(self, name: str) -> Direction:
        """Look up a direction, simulated or real, by its name.

        Raises
        ------
        ValueError
            There is no such direction.
        """
        known = self.directions | self.real_directions
        check(name in known, "direction", f"one of {sorted(known)}", name)
        return known[name]

    def for_direction(self, name: str) -> "Settings":
        """Put a direction's own values of the bridge over those that hold for all.

        Raises
        ------
        ValueError
            There is no such direction, or it has a value that the section refuses.
        """
        own = self.direction(name).bridge
        return self.override("bridge", own) if own else self

    def collection(self, name: str) -> dict[str, Direction]:
        """Return the directions of a table: ``directions`` or ``real_directions``.

        Raises
        ------
        ValueError
            There is no such collection.
        """
        known = {"directions": self.directions, "real_directions": self.real_directions}
        check(name in known, "collection", f"one of {sorted(known)}", name)
        return known[name]

    def dataset(self, name: str) -> Dataset:
        """Look up a dataset, simulated or real, by its name.

        Raises
        ------
        ValueError
            There is no such dataset.
        """
        known = self.datasets | self.real_datasets
        check(name in known, "dataset", f"one of {sorted(known)}", name)
        return known[name]

    def modalities(self, dataset: str) -> tuple[str, ...]:
        """Modalities of a dataset that some direction uses, sorted."""
        directions = (self.directions | self.real_directions).values()
        return tuple(
            sorted({m for d in directions if d.dataset == dataset for m in (d.old, d.new)})
        )

    def with_seeds(self, seeds: list) -> "Settings":
        """Replace the seeds, with the same checks as params.yaml gets."""
        return replace(self, seeds=build(tuple[int, ...], seeds, "seeds"))

    def override(self, section: str, values: dict[str, Any]) -> "Settings":
        """Replace fields of one section, with the same checks as params.yaml gets."""
        return replace(self, **{section: self._merged(section, values)})

    def _merged(self, section: str, values: dict[str, Any]) -> Any:
        current = getattr(self, section)
        merged = {f.name: getattr(current, f.name) for f in fields(current)} | values
        return build(type(current), merged, section)


def load_settings(path: Path | str = "params.yaml") -> Settings:
    """Read and check a params.yaml.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        Something in it is unknown, of the wrong type or impossible; the message names the key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the project's settings, found no such file")
    content = read_yaml(path)
    try:
        return build(Settings, content, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_reader(key: str, reader: str, data: Dataset) -> None:
    """Check that a dataset has what its reader needs, and nothing its reader does not know."""
    keys = READER_KEYS.get(reader, {})
    for name in ("picks", "classes", "labels"):
        value = getattr(data, name)
        expected = f"a value for the reader {reader}"
        check(bool(value) or not keys.get(name), f"{key}.{name}", expected, "none")
        expected = f"none for the reader {reader}"
        check(not value or name in keys, f"{key}.{name}", expected, value)
    own = reader != "recordings" or data.source == "original"
    check(own, f"{key}.source", "original for the reader recordings", data.source)


def _positive(section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        check(value > 0, name, "a number above 0", value)
