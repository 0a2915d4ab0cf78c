"""Simulated paired recordings, written in the raw formats of WESAD, FOG and ISRUC-Sleep.

A latent state (stress, freezing, sleep stage) drives both modalities of a subject; subjects differ
in resting physiology, in anatomy and in how much they react, so that a state shows in a new subject
often, not always. Each subject has a random stream of its own, seeded by (seed, data set, subject):
a file does not depend on which others are written, nor on their order.

The generators are this project's own: one series of beats, with a rate that the state moves from
beat to beat, has to make both the ECG and the PPG, and neurokit2's `ecg_simulate` and
`ppg_simulate` each draw beats of their own around one constant rate. neurokit2 judges instead: the
tests ask its detectors for the rate of what is written here.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from joblib import Parallel, delayed
from tqdm import tqdm

from biox.data.raw_formats import mat_v5, number_table, python2_pickle, write_bytes
from biox.data.simulated_fog import FOG_DECIMALS, FOG_SESSIONS, fog_patient
from biox.data.simulated_isruc import ISRUC_SUBJECTS, isruc_subject, stage_text
from biox.data.simulated_wesad import WESAD_SUBJECTS, wesad_subject


def simulate_wesad(
    folder: Path | str,
    seed: int = 0,
    subjects: Iterable[int] = WESAD_SUBJECTS,
    scale: float = 1.0,
    effect: float = 1.0,
    n_jobs: int = 1,
) -> list[Path]:
    """Write ``S2/S2.pkl`` and so on, as WESAD publishes them, and return their paths.

    Parameters
    ----------
    folder : Path or str
        Takes the place of the original's folder ``WESAD``.
    seed : int
    subjects : iterable of int
        Numbers of the subjects; by default those of WESAD.
    scale : float
        Multiplies `WESAD_SECONDS`; 1 gives 695 s a subject.
    effect : float
        Multiplies every influence of the state; with 0 the state leaves no trace in the signals.
    n_jobs : int
        Processes; -1: one a core. The files are the same with any number.
    """

    def write(subject: int) -> list[Path]:
        path = Path(folder) / f"S{subject}" / f"S{subject}.pkl"
        write_bytes(path, python2_pickle(wesad_subject(seed, subject, scale, effect)))
        return [path]

    return _for_each(write, list(subjects), n_jobs)


def simulate_fog(
    folder: Path | str,
    seed: int = 0,
    patients: Sequence[str] = tuple(FOG_SESSIONS),
    seconds: float = 80.0,
    effect: float = 1.0,
    n_jobs: int = 1,
) -> list[Path]:
    """Write ``001/task_1.txt`` and so on, as the FOG data set publishes them; return the paths.

    Parameters
    ----------
    folder : Path or str
        Takes the place of the original's folder ``FilteredData``.
    seed : int
    patients : sequence of str
        ``"001"`` to ``"012"``.
    seconds : float
        Length of each recording; a multiple of 0.1.
    effect : float
        Multiplies every influence of freezing; with 0 it leaves no trace in the signals.
    n_jobs : int
        Processes; -1: one a core.
    """

    def write(patient: str) -> list[Path]:
        paths = []
        for session, table in fog_patient(seed, patient, seconds, effect).items():
            paths.append(Path(folder) / patient / session / "task_1.txt")
            write_bytes(paths[-1], number_table(table, FOG_DECIMALS))
        return paths

    return _for_each(write, list(patients), n_jobs)


def simulate_isruc(
    folder: Path | str,
    seed: int = 0,
    subjects: Iterable[int] = ISRUC_SUBJECTS,
    epochs: int = 30,
    effect: float = 1.0,
    n_jobs: int = 1,
) -> list[Path]:
    """Write ``ExtractedChannels/subject1.mat`` and ``RawData/1/1_1.txt`` and so on, as ISRUC does.

    Parameters
    ----------
    folder : Path or str
        Takes the place of the original's folder of subgroup I.
    seed : int
    subjects : iterable of int
        Numbers of the subjects; the default leaves out 8, because the original has gaps too.
    epochs : int
        Epochs of 30 s in each .mat; the label text has 30 more lines, as the original has.
    effect : float
        Multiplies every influence of the sleep stage; with 0 it leaves no trace in the signals.
    n_jobs : int
        Processes; -1: one a core.

    Returns
    -------
    list of Path
        The .mat file, then the label text, of each subject.
    """

    def write(subject: int) -> list[Path]:
        signals, stages = isruc_subject(seed, subject, epochs, effect)
        mat = Path(folder) / "ExtractedChannels" / f"subject{subject}.mat"
        write_bytes(mat, mat_v5(signals))
        text = Path(folder) / "RawData" / f"{subject}" / f"{subject}_1.txt"
        write_bytes(text, stage_text(stages))
        return [mat, text]

    return _for_each(write, list(subjects), n_jobs)


def _for_each(write: Callable, subjects: list, n_jobs: int) -> list[Path]:
    """Write each subject's files, several subjects at a time, and return the paths in order."""
    written = Parallel(n_jobs=n_jobs, return_as="generator")(delayed(write)(s) for s in subjects)
    shown = tqdm(written, desc="subjects", total=len(subjects), disable=None)
    return [path for paths in shown for path in paths]


SIMULATORS: dict[str, Callable[..., list[Path]]] = {
    "wesad": simulate_wesad,
    "fog": simulate_fog,
    "isruc": simulate_isruc,
}
"""By data set: a function of a folder, a seed and, among others, a number of processes."""
