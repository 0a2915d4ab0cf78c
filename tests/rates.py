"""Heart rates by a library that knows nothing of this project."""

import neurokit2
import numpy as np


def rate_by_neurokit(x, rate, modality):
    """Mean rate in bpm, by stock peak detection."""
    if modality == "ecg":
        clean = neurokit2.ecg_clean(x, sampling_rate=rate)
        found = neurokit2.ecg_peaks(clean, sampling_rate=rate)[1]["ECG_R_Peaks"]
    else:
        clean = neurokit2.ppg_clean(x, sampling_rate=rate)
        found = neurokit2.ppg_findpeaks(clean, sampling_rate=rate)["PPG_Peaks"]
    return 60 / np.mean(np.diff(found) / rate)
