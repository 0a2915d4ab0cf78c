"""Seconds of real recordings, kept in the package to hold simulated ones beside them.

``real_excerpts/`` holds ten seconds of BIDMC record 05 (from 100 s; lead II and PLETH, 125 Hz,
uncalibrated) and six seconds of EEGMAT Subject05_1 (from 20 s; F3, C3, O1, 500 Hz, uV). Both
databases are on PhysioNet under the Open Data Commons Attribution License 1.0; THIRD_PARTY.md says
whom to cite.
"""

from collections.abc import Iterable
from importlib.resources import files

import numpy as np
import pandas as pd

_WHERE = {
    "ecg": ("bidmc_05_from_100s.csv", ["II"], 125.0, "a.u."),
    "ppg": ("bidmc_05_from_100s.csv", ["PLETH"], 125.0, "a.u."),
    "eeg": ("eegmat_Subject05_1_from_20s.csv", ["F3", "C3", "O1"], 500.0, "uV"),
}


def real_excerpts(modalities: Iterable[str]) -> dict[str, tuple[np.ndarray, float, str]]:
    """Return real signals of the modalities that there are any of.

    Returns
    -------
    dict
        Modality -> (values [channels, samples], rate in Hz, unit).
    """
    found = {}
    for modality in modalities:
        if modality in _WHERE:
            name, channels, rate, unit = _WHERE[modality]
            with files("biox.data").joinpath("real_excerpts", name).open() as file:
                found[modality] = (pd.read_csv(file)[channels].to_numpy().T, rate, unit)
    return found
