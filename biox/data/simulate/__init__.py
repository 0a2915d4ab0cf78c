"""Simulated paired recordings, in the raw formats of WESAD, FOG, ISRUC-Sleep and DREAMER.

A latent state (stress, freezing, sleep stage, mood) drives both modalities of a subject; subjects
differ in resting physiology, in anatomy and in how much they react, so that a state shows in a new
subject often, not always. Each subject has a random stream of its own, seeded by (seed, data set,
subject): a file does not depend on which others are written, nor on their order.

The generators are this project's own: one series of beats, with a rate that the state moves from
beat to beat, has to make both the ECG and the PPG, and neurokit2's `ecg_simulate` and
`ppg_simulate` each draw beats of their own around one constant rate. The tests use neurokit2's
detectors to find the rate of what is written here.

Everything is written in the steps of a recorder (an analogue-to-digital converter). They are far
larger than the last bits in which processors differ, so that files are equal on all of them.
"""

from collections.abc import Sequence
from pathlib import Path

from joblib import Parallel, delayed
from tqdm import tqdm

from biox.data.simulate import dreamer, fog, isruc, wesad

SIMULATORS = {"wesad": wesad, "fog": fog, "isruc": isruc, "dreamer": dreamer}
"""Modules with ``SUBJECTS`` and ``write(folder, seed, subject, length, effect)``; for one file of
all subjects, ``person(seed, subject, length, effect)`` and ``write_all(folder, subjects)``."""


def simulate(
    dataset: str,
    folder: Path | str,
    seed: int = 0,
    n_jobs: int = 1,
    subjects: Sequence[str] | None = None,
    length: float = 1.0,
    effect: float = 1.0,
) -> list[Path]:
    """Write raw files as the data set publishes them, and return their paths.

    Parameters
    ----------
    dataset : {"wesad", "fog", "isruc", "dreamer"}
    folder : Path or str
        Takes the place of the original's folder.
    n_jobs : int
        Processes; -1: one a core. The files are the same with any number.
    subjects : sequence of str, optional
        Whom to simulate; by default the subjects of the original (of ISRUC the first 30).
    length : float
        Multiplies the duration of a recording: 695 s (WESAD), 80 s (FOG), 900 s (ISRUC), or of each
        of the 18 clips: 30 s (DREAMER).
    effect : float
        Multiplies every influence of the state; with 0 the state leaves no trace in the signals.
    """
    simulator = SIMULATORS[dataset]
    chosen = list(simulator.SUBJECTS if subjects is None else subjects)
    whole = hasattr(simulator, "write_all")
    make, first = (simulator.person, ()) if whole else (simulator.write, (Path(folder),))
    made = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(make)(*first, seed, subject, length, effect) for subject in chosen
    )
    made = list(tqdm(made, desc="subjects", total=len(chosen), disable=None))
    if whole:
        return simulator.write_all(Path(folder), made)
    return [path for paths in made for path in paths]
