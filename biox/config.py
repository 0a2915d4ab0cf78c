"""params.yaml as checked settings, and the paths of the pipeline.

Each default stands once, in params.yaml; what it means is described once, on its field here.
An unknown key, a wrong type or an impossible value stops with one sentence that names the key.
"""

import hashlib
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.functional_validators import AfterValidator, model_validator

Modality = Literal["ecg", "ppg", "eeg", "emg"]
Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, pydantic.StringConstraints(min_length=1)]


def _distinct(values: list) -> list:
    if len(set(map(str, values))) != len(values):
        raise ValueError(f"expected each value once, found {values}")
    return values


Seeds = Annotated[list[int], Field(min_length=1), AfterValidator(_distinct)]
Names = Annotated[list[Name], Field(min_length=1), AfterValidator(_distinct)]
LearningRates = Annotated[list[PositiveFloat], Field(min_length=1), AfterValidator(_distinct)]
Picks = Annotated[list[Name | PositiveInt], Field(min_length=1), AfterValidator(_distinct)]


class Section(BaseModel):
    """A section of params.yaml: no other keys, nothing converted, nothing changed later."""

    model_config = dict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Direction(Section):
    """A transfer: labels in modality `old`, none in modality `new`, both recorded in `dataset`."""

    dataset: str
    old: Modality
    new: Modality
    new_model: str | None = None  # key of `backbones` (Table 3); null: as `models` says
    models: dict[Modality, str] = {}  # keys of `backbones`, where not named like the modality
    m: NonNegativeInt | None = None  # new layer to read after; null: chosen by probing
    l: NonNegativeInt | None = None  # old layer to write before; null: chosen by CKA
    seeds: Seeds | None = None  # null: those of all directions
    bridge: dict[str, Any] = {}  # put over the section `bridge`
    baselines: dict[str, Any] = {}  # put over the section `baselines`

    @property
    def old_key(self) -> str:
        """Key of the old model in `backbones`."""
        return self.models.get(self.old, self.old)

    @property
    def new_key(self) -> str:
        """Key of the new model in `backbones`."""
        return self.new_model or self.models.get(self.new, self.new)


class Dataset(Section):
    """Where recordings lie, how windows are cut, and which subjects form which split."""

    source: Literal["simulated", "original"]
    folder: str
    reader: str | None = None  # module of biox.data.readers; null: the data set's own name
    seconds: PositiveFloat  # length of a window
    step: PositiveFloat  # from one window's start to the next, in seconds
    # What filters and z-scores see at once; stretch: z-scores see one split of a recording.
    condition_per: Literal["recording", "stretch", "window"]
    resampling: Literal["linear", "polyphase"] = "linear"  # polyphase: with an anti-alias filter
    # Subjects: train (teacher), val, pair (bridge, no labels), test; or `all`, if split by time.
    splits: dict[Literal["train", "val", "pair", "test", "all"], Names]
    protocol: Literal["by_subject", "blocked_windows", "shuffled_windows"] = "by_subject"
    channels: dict[Modality, PositiveInt] = {}  # where not the backbone's default
    picks: dict[Modality, Picks] = {}  # own recordings: channels by modality, as files name them
    classes: Names | None = None  # own recordings: the labels, in the order of their indices
    labels: Literal["valence", "arousal", "dominance"] | None = None  # of DREAMER
    threshold: float | None = None  # of DREAMER's ratings, 1 to 5: above it is high

    @model_validator(mode="after")
    def _consistent(self):
        expected = {"all"} if self.protocol != "by_subject" else {"train", "val", "pair", "test"}
        if set(self.splits) != expected:
            raise ValueError(f"splits: expected {sorted(expected)}, found {sorted(self.splits)}")
        seen: dict[str, str] = {}
        for split, subjects in self.splits.items():
            for subject in subjects:
                if seen.setdefault(subject.strip().casefold(), split) != split:
                    found = f"{subject} in {seen[subject.strip().casefold()]} and {split}"
                    raise ValueError(f"splits: expected each subject in one split, found {found}")
        if self.condition_per == "stretch" and self.protocol == "shuffled_windows":
            expected = "recording or window with shuffled windows"
            raise ValueError(f"condition_per: expected {expected}, found stretch")
        for modality, names in self.picks.items():
            if (found := self.channels.get(modality, len(names))) != len(names):
                expected = f"{len(names)} as in picks"
                raise ValueError(f"channels.{modality}: expected {expected}, found {found}")
        if self.classes is not None and len(self.classes) < 2:
            raise ValueError(f"classes: expected two or more, found {self.classes}")
        return self

    def n_channels(self, modality: str) -> int | None:
        """Return the number of channels of a modality's windows; None: the backbone's default."""
        picked = self.picks.get(modality)
        return len(picked) if picked else self.channels.get(modality)

    def reader_options(self) -> dict[str, Any]:
        """Return the keyword arguments of the reader besides folder and subject."""
        given = {"channels": self.picks, "classes": self.classes}
        given |= {"target": self.labels, "threshold": self.threshold}
        return {name: value for name, value in given.items() if value}


class BackboneChoice(Section):
    """A foundation model: architecture, size and weights."""

    name: str
    size: str
    checkpoint: str | None  # a file; null: untrained
    modality: Modality | None = None  # null: the key itself is one
    # For labram: how the 16 rows of the published time embedding serve longer windows.
    widen: Literal["interpolate", "extend"] | None = None


class Simulate(Section):
    """Simulated recordings."""

    seed: int
    datasets: list[Literal["wesad", "fog", "isruc", "dreamer"]]  # whose raw formats are written


class PretrainedModel(Section):
    """Pretraining of one tiny backbone on simulated windows."""

    seconds: Annotated[list[PositiveFloat], Field(min_length=1)]  # lengths of windows
    minutes: PositiveFloat  # of signal at each of these lengths
    epochs: PositiveInt
    lr: PositiveFloat
    reconstruction: PositiveFloat  # weight of masked reconstruction; 1: of the parameters
    common: NonNegativeFloat  # weight of keeping small what all windows have in common
    weights: dict[str, NonNegativeFloat]  # of the simulator's parameters; 1 if not named
    dtype: Literal["float32", "float16"]  # in which the weights are saved


class Pretrain(Section):
    """Pretraining of the tiny backbones; the weights are kept in git."""

    batch: PositiveInt
    mask: Annotated[float, Field(ge=0, lt=1)]  # share of tokens hidden for reconstruction
    seed: int
    models: dict[str, PretrainedModel]  # keys of `backbones`


class DualMask(Section):
    """Masked pretraining of the twelve-lead ECG encoder; the weights are kept in git."""

    windows: PositiveInt  # simulated, each of another person
    intra: Annotated[float, Field(gt=0, lt=1)]  # share of the patches hidden in each lead
    inter: Annotated[float, Field(gt=0, lt=1)]  # share of the leads hidden whole
    mixes: dict[str, Annotated[float, Field(ge=0, le=1)]]  # share of windows with whole leads
    epochs: PositiveInt
    batch: PositiveInt
    lr: PositiveFloat  # of AdamW, at its peak
    warmup: Annotated[float, Field(ge=0, lt=1)]  # share of the steps
    weight_decay: NonNegativeFloat
    seed: int


class Teacher(Section):
    """The old modality's task model."""

    train: dict[Modality, Literal["head", "all"]]  # which weights learn
    lr: PositiveFloat  # of fine-tuning, as are epochs, batch and seed
    epochs: PositiveInt
    batch: PositiveInt
    seed: int


class ActivationSettings(Section):
    """The one pass of the frozen models."""

    dtype: Literal["float32", "float16"]  # of the old model's last layer on disk
    batch: PositiveInt  # windows


class Positions(Section):
    """Two-stage selection of m (probe) and l (CKA), section 3.3 of the paper."""

    cka: Literal["debiased", "biased"]  # published: biased
    features: Literal["pooled", "flattened"]  # what CKA compares; released code: pooled
    probe: Literal["by_subject", "as_published"]  # folds; published: of windows, unscaled
    n_folds: Annotated[int, Field(ge=2)]


class Bridge(Section):
    """The bridge (equation 6) and its training (equation 7)."""

    rank: PositiveInt  # r
    n_prototypes: PositiveInt  # N_p
    prototypes: Literal["tokens", "random"]  # of the old model (paper), or normal (released)
    layout: Literal["tokens", "released"]  # released: reshaped where the old model is LaBraM
    affine: bool  # standardised input and constants; paper: false
    start: Literal["zeros", "regression"]  # of B, or all computed; paper: zeros
    ridge: NonNegativeFloat  # penalty of the regression, per window
    centre: Literal["none", "within", "subject", "causal"]  # features by subject; paper: none
    loss: Literal["cosine", "centred", "centred_kl", "mae", "infonce"]  # cosine: equation 7
    kl_weight: NonNegativeFloat  # of the predictions' divergence in centred_kl
    align: Literal["last", "input"]  # layer whose representations the loss compares
    temperature: PositiveFloat  # of infonce
    lr: PositiveFloat | None  # of Adam; null: found by `search`
    epochs: NonNegativeInt  # 0: the regression alone
    batch: PositiveInt

    @model_validator(mode="after")
    def _parts_fit(self):
        if self.start == "regression" and (not self.affine or self.layout == "released"):
            raise ValueError("start: expected affine: true and layout: tokens with regression")
        if self.start == "zeros" and self.epochs == 0:
            raise ValueError("epochs: expected at least 1 with start: zeros, found 0")
        if self.loss == "centred_kl" and self.align == "input":
            raise ValueError("loss: expected align: last with centred_kl, found input")
        return self


class Search(Section):
    """Learning rates of Adam that the first seed tries."""

    bridge: LearningRates
    students: LearningRates


class Baselines(Section):
    """Distillation into a student; epochs, batch and learning rates as the bridge has them."""

    methods: Annotated[list[Literal["KD", "KD-Contrast", "LoRA-KD"]], AfterValidator(_distinct)]
    lr: PositiveFloat | None  # null: found by `search`
    every: PositiveInt  # students read every n-th paired window
    patience: PositiveInt | None  # epochs without a better agreement or loss; null: never stop
    temperature: PositiveFloat  # of both sides' logits in KD
    contrast_weight: PositiveFloat  # of InfoNCE in KD-Contrast; 1: of KD's loss
    contrast_temperature: PositiveFloat


class CardioGAN(Section):
    """CardioGAN (Sarkar & Etemad, AAAI 2021): size and training."""

    directions: list[str]  # that get this baseline
    width: Share  # factor of all numbers of filters; published: 1.0
    epochs: PositiveInt
    batch: PositiveInt
    lr: PositiveFloat
    alpha: NonNegativeFloat  # weight of the adversarial loss in time
    beta: NonNegativeFloat  # ... in frequency
    cycle: NonNegativeFloat  # ... of cycle consistency
    seconds: PositiveFloat  # length of a segment
    rate: PositiveFloat  # of a segment, in Hz
    segments: PositiveInt | None  # of each modality in an epoch, at most; null: all

    @property
    def samples(self) -> int:
        """Samples of a segment."""
        return round(self.seconds * self.rate)

    @model_validator(mode="after")
    def _segments_have_a_spectrum(self):
        if not (self.seconds * self.rate).is_integer() or self.samples < 128:
            expected = f"at least 128 whole samples at {self.rate:g} Hz"
            raise ValueError(f"seconds: expected {expected}, found {self.seconds:g} s")
        return self


class Ablations(Section):
    """Runs of the bridge's notebook with one setting changed, and the map of all positions."""

    direction: str
    runs: dict[str, str]  # name of a run -> options of papermill
    map_share: Share  # of the paired and val windows, for each bridge of the map
    map_seeds: PositiveInt  # of `seeds`, for each bridge of the map


class Controls(Section):
    """Negative controls, leak audits, calibration."""

    seeds_used: PositiveInt  # of `seeds`, for bridges of controls
    shuffles: PositiveInt  # of the pairs, each with a bridge
    epochs: PositiveInt | None  # of bridges of controls; null: as many as the bridge
    positions_in: list[str]  # directions with bridges at other positions
    random_positions: NonNegativeInt  # (m, l) besides the selected one
    selections: PositiveInt  # of positions with permuted pseudo-labels
    permutations: PositiveInt  # of pseudo-labels, for linear heads
    n_splits: Annotated[int, Field(ge=2)]  # of windows into train and test, in the leak audits
    bins: PositiveInt  # of confidence


class Settings(Section):
    """Everything in params.yaml."""

    seeds: Seeds
    device: Literal["auto", "cpu", "cuda"]
    threads: PositiveInt | None  # of each training; null: all cores (results then depend on them)
    directions: dict[str, Direction]
    datasets: dict[str, Dataset]
    backbones: dict[str, BackboneChoice]
    simulate: Simulate
    pretrain: Pretrain
    dual_mask: DualMask
    teacher: Teacher
    activations: ActivationSettings
    positions: Positions
    bridge: Bridge
    ours: dict[str, Any]  # put over `bridge` for Table 1's row "Bridge (ours)"
    computed: dict[str, Any]  # and for "Computed bridge"
    search: Search
    baselines: Baselines
    cardiogan: CardioGAN
    ablations: Ablations
    controls: Controls

    @model_validator(mode="after")
    def _names_exist(self):
        for name, direction in self.directions.items():
            key = f"directions.{name}"
            dataset = _known(f"{key}.dataset", direction.dataset, self.datasets)
            if direction.old == (new := direction.new):
                raise ValueError(f"{key}.new: expected a modality other than old, found {new}")
            for modality in (direction.old, direction.new):
                _known(key, modality, self.backbones)
                if dataset.classes is not None:
                    _known(f"{key} (picks of {direction.dataset})", modality, dataset.picks)
            named = [(f"models.{m}", model, m) for m, model in direction.models.items()]
            for field, model, of in (*named, ("new_model", direction.new_key, direction.new)):
                _known(f"{key}.{field}", model, self.backbones)
                if (own := self.modality(model)) != of:
                    raise ValueError(f"{key}.{field}: expected a model of {of}, found one of {own}")
            for section in ("bridge", "baselines"):
                self._merged(section, getattr(direction, section), where=f"{key}.{section}")
        for key, choice in self.backbones.items():
            if choice.modality is None and key not in ("ecg", "ppg", "eeg", "emg"):
                raise ValueError(f"backbones.{key}.modality: expected one, found none")
        for section in ("ours", "computed"):
            self._merged("bridge", getattr(self, section), where=section)
        for key in self.pretrain.models:
            _known("pretrain.models", key, self.backbones)
        _known("ablations.direction", self.ablations.direction, self.directions)
        for section in ("controls.positions_in", "cardiogan.directions"):
            for name in operator.attrgetter(section)(self):
                _known(section, name, self.directions)
        return self

    def direction(self, name: str) -> Direction:
        """Look up a direction; raise ValueError if there is none of that name."""
        return _known("direction", name, self.directions)

    def dataset(self, name: str) -> Dataset:
        """Look up a data set; raise ValueError if there is none of that name."""
        return _known("dataset", name, self.datasets)

    def backbone(self, key: str) -> BackboneChoice:
        """Look up a backbone; raise ValueError if there is none of that name."""
        return _known("backbone", key, self.backbones)

    def modality(self, key: str) -> str:
        """Return the modality that a backbone reads."""
        return self.backbone(key).modality or key

    def keys_of(self, dataset: str) -> list[str]:
        """Return the backbones that some direction uses on a data set, in order of `backbones`."""
        of = [d for d in self.directions.values() if d.dataset == dataset]
        used = {key for d in of for key in (d.old_key, d.new_key)}
        return [key for key in self.backbones if key in used]

    def for_direction(self, name: str) -> "Settings":
        """Put a direction's own seeds, bridge and baselines in the place of those of all."""
        direction = self.direction(name)
        own = {x: self._merged(x, getattr(direction, x)) for x in ("bridge", "baselines")}
        return self.model_copy(update=own | {"seeds": direction.seeds or self.seeds})

    def override(self, section: str, values: Mapping[str, Any]) -> "Settings":
        """Replace fields of one section, checked as params.yaml is."""
        return self.model_copy(update={section: self._merged(section, values)})

    def with_seeds(self, seeds: Sequence[int]) -> "Settings":
        """Replace the seeds, checked as params.yaml is."""
        return _validated(Settings, dict(self) | {"seeds": list(seeds)})

    def _merged(self, section: str, values: Mapping[str, Any], where: str | None = None) -> Section:
        current = getattr(self, section)
        return _validated(type(current), current.model_dump() | dict(values), where or section)


def _known(where: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise ValueError(f"{where}: expected one of {sorted(known)}, found {name!r}")
    return known[name]


def _validated(kind: type[Section], content: Any, where: str = "") -> Any:
    """Build a section; the first error becomes one sentence with key, expectation and finding."""
    try:
        return kind.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
    key = ".".join(str(part) for part in (where, *first["loc"]) if part != "")
    reason = first["msg"].removeprefix("Value error, ")
    reason = reason[0].lower() + reason[1:]
    if first["type"] == "value_error":
        raise ValueError(f"{key}.{reason}" if key else reason)
    plain = {"extra_forbidden": "unknown key", "missing": "expected a value, found none"}
    if first["type"] in plain:
        raise ValueError(f"{key}: {plain[first['type']]}")
    number = isinstance(first["input"], str) and re.fullmatch(r"[\d.]+e[-+]?\d+", first["input"])
    hint = " (YAML needs a decimal point, as in 1.0e-4)" if number else ""
    raise ValueError(f"{key}: {reason}, found {first['input']!r}{hint}")


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error."""

    def construct_mapping(self, node, deep=False):
        """Build a dict."""
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if len(set(keys)) < len(keys):
            raise ValueError(f"expected each key once, found one again in {sorted(keys)}")
        return super().construct_mapping(node, deep)


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
    try:
        return _validated(Settings, yaml.load(path.read_text(), Loader=_UniqueKeys))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Paths:
    """Folders of the pipeline, relative to the project's root."""

    data: Path = Path("data")
    figures: Path = Path("figures")

    def windows(self, dataset: str, split: str) -> Path:
        """Return the file of one split's windows."""
        return self.data / "windows" / dataset / f"{split}.safetensors"

    def pretrained(self, key: str) -> Path:
        """Return the file of a tiny backbone's pretrained weights."""
        return self.data / "pretrained" / f"{key}.safetensors"

    def teacher(self, direction: str) -> Path:
        """Return the folder of a direction's teacher."""
        return self.data / "teachers" / direction

    def activations(self, direction: str, split: str) -> Path:
        """Return the file of one split's activations."""
        return self.data / "activations" / direction / f"{split}.safetensors"

    def positions(self, direction: str) -> Path:
        """Return the file of m, l and the scores of all layers."""
        return self.data / "positions" / f"{direction}.json"

    def results(self, kind: str, name: str) -> Path:
        """Return a folder of results; `kind`: bridges, baselines, computed, sweep."""
        return self.data / kind / name


PATHS = Paths()


def device_of(settings: Settings) -> str:
    """Resolve ``device: auto`` to ``cuda`` where there is one, else ``cpu``."""
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    return found if settings.device == "auto" else settings.device


def digest(path: Path | str) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
