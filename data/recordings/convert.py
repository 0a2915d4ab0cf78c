"""Make the compact files in this folder from the originals that PhysioNet publishes.

    python data/recordings/convert.py bidmc FOLDER
    python data/recordings/convert.py eegmat FOLDER

FOLDER holds the downloaded files: for BIDMC ``bidmc_NN_Signals.csv`` (or ``.csv.gz``),
``bidmc_NN_Numerics.csv``, ``bidmc_NN_Breaths.csv`` and ``bidmc_NN_Fix.txt``, for EEGMAT
``SubjectNN_1.edf`` and ``SubjectNN_2.edf``. README.md says what is changed.
"""

import argparse
import re
import shutil
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import wfdb
from scipy.signal import resample_poly

HERE = Path(__file__).parent

BIDMC_RECORDS = range(1, 33)
BIDMC_RATE = 125  # Hz
BIDMC_LENGTH, BIDMC_SECONDS = 480, 30  # of a record, of the windows in windows_30s.csv
BREATHS_AGREE = 2.0  # breaths per minute
MIN_BREATHS = 4  # marks in a window for a rate

EEGMAT_SUBJECTS = [*range(1, 13), *range(14, 20)]
EEGMAT_CHANNELS = ["EEG F3", "EEG C3", "EEG O1", "EEG F4", "EEG C4", "EEG O2", "ECG ECG"]
EEGMAT_SECONDS, EEGMAT_PADDING = 60, 2  # the published files end with constant values
EEGMAT_RATE, EEGMAT_NEW_RATE = 500, 200  # Hz


def main() -> None:
    """Read the command line and convert one data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=["bidmc", "eegmat"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    out = arguments.out / arguments.dataset
    out.mkdir(parents=True, exist_ok=True)
    {"bidmc": bidmc, "eegmat": eegmat}[arguments.dataset](arguments.folder, out)


def bidmc(folder: Path, out: Path) -> None:
    """Convert 32 records: lead II and PLETH to WFDB with FLAC, tables of numbers as they are."""
    tables = []
    for number in BIDMC_RECORDS:
        name = f"bidmc_{number:02d}"
        plain = folder / f"{name}_Signals.csv"
        signals = read_csv(plain if plain.is_file() else plain.with_suffix(".csv.gz"))
        fix = (folder / f"{name}_Fix.txt").read_text()
        patient = re.search(r"MIMIC II matched wdb ID:\s*(\w+)", fix)[1]
        ecg, ecg_gain = to_integers(signals["II"].to_numpy())
        ppg, ppg_gain = to_integers(signals["PLETH"].to_numpy())
        wfdb.wrsamp(
            name,
            fs=BIDMC_RATE,
            units=["NU", "NU"],
            sig_name=["II", "PLETH"],
            d_signal=np.stack([ecg, ppg], axis=1),
            fmt=["516", "516"],  # FLAC, 16 bit
            adc_gain=[float(ecg_gain), float(ppg_gain)],
            baseline=[0, 0],
            comments=[
                f"MIMIC II matched wdb ID: {patient}",
                "BIDMC PPG and Respiration Dataset 1.0.0, PhysioNet, ODC-By 1.0",
            ],
            write_dir=str(out),
        )
        for kind in ("Numerics", "Breaths"):
            shutil.copyfile(folder / f"{name}_{kind}.csv", out / f"{name}_{kind}.csv")
        tables.append(rates_per_window(out, name, patient))
    pd.concat(tables).to_csv(out / "windows_30s.csv", index=False, float_format="%.2f")


def read_csv(path: Path) -> pd.DataFrame:
    """A table whose header names are padded with blanks."""
    table = pd.read_csv(path, skipinitialspace=True)
    return table.rename(columns=str.strip)


def to_integers(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Recover the integers of the analogue-to-digital converter, and how many make one unit.

    The published text has five significant digits. The gain is the smallest one for which integer
    over gain equals every value within the rounding of the text.
    """
    unique = np.unique(values)
    exponent = np.floor(np.log10(np.abs(unique), where=unique != 0, out=np.zeros_like(unique)))
    rounding = 0.6 * 10.0 ** (exponent - 4)  # a little more than half of the last digit
    for gain in range(50, 4097):
        if np.all(np.abs(np.rint(unique * gain) / gain - unique) <= rounding):
            return np.rint(values * gain).astype(np.int64), gain
    raise ValueError("expected multiples of a step of at least 1/4096, found other values")


def rates_per_window(folder: Path, name: str, patient: str) -> pd.DataFrame:
    """Mean heart rate of the monitor, and breathing rate from the breaths that two people marked.

    The breathing rate of one annotator is 60 (n - 1) / (t_n - t_1) for n >= 4 marks in the window.
    The reference is the mean of both where they differ by at most 2 per minute, else empty.
    """
    numerics, breaths = (
        read_csv(folder / f"{name}_{kind}.csv") for kind in ("Numerics", "Breaths")
    )
    rows = []
    for start in range(0, BIDMC_LENGTH, BIDMC_SECONDS):
        stop = start + BIDMC_SECONDS
        time = numerics["Time [s]"]
        heart_rate = numerics["HR"][(time >= start) & (time < stop)].mean()
        rates = []
        for column in breaths:
            marks = breaths[column].dropna().to_numpy() / BIDMC_RATE
            marks = marks[(marks >= start) & (marks < stop)]  # a few are not in order of time
            enough = len(marks) >= MIN_BREATHS
            rates.append(60 * (len(marks) - 1) / np.ptp(marks) if enough else np.nan)
        agree = abs(rates[0] - rates[1]) <= BREATHS_AGREE
        reference = np.mean(rates) if agree else np.nan
        rows.append([name, patient, start, BIDMC_SECONDS, heart_rate, *rates, reference])
    columns = "record patient start_s len_s hr_mean rr_ann1 rr_ann2 rr_ref".split()
    return pd.DataFrame(rows, columns=columns)


def eegmat(folder: Path, out: Path) -> None:
    """Convert 18 subjects, rest and task: seven channels, the central minute, 500 to 200 Hz."""
    for number in EEGMAT_SUBJECTS:
        for part in (1, 2):
            name = f"Subject{number:02d}_{part}.edf"
            raw = mne.io.read_raw_edf(folder / name, verbose="ERROR")
            assert raw.info["sfreq"] == EEGMAT_RATE
            seconds = raw.n_times // EEGMAT_RATE - EEGMAT_PADDING
            first = (seconds - EEGMAT_SECONDS) // 2 * EEGMAT_RATE
            stop = first + EEGMAT_SECONDS * EEGMAT_RATE
            volts = raw.get_data(picks=EEGMAT_CHANNELS, start=first, stop=stop)
            values = volts * np.array([1e6] * 6 + [1e3])[:, None]  # uV, and mV for the ECG
            values = resample_poly(values, 2, 5, axis=1, padtype="line")
            year = f"{raw.info['meas_date']:%Y}"
            write_edf(
                out / name,
                values,
                names=EEGMAT_CHANNELS,
                units=["uV"] * 6 + ["mV"],
                prefilters=edf_prefilters(folder / name),
                rate=EEGMAT_NEW_RATE,
                subject=f"Subject{number:02d}",
                year=year,
            )


def edf_prefilters(path: Path) -> list[str]:
    """What the header states on filters for each of `EEGMAT_CHANNELS`; empty in most files."""
    with open(path, "rb") as file:
        n = int(file.read(256)[252:])
        fields = file.read(256 * n).decode("ascii")
    names = [fields[16 * i : 16 * (i + 1)].strip() for i in range(n)]
    texts = [fields[136 * n + 80 * i : 136 * n + 80 * (i + 1)].strip() for i in range(n)]
    return [texts[names.index(name)] for name in EEGMAT_CHANNELS]


def write_edf(
    path: Path,
    values: np.ndarray,
    *,
    names: list[str],
    units: list[str],
    prefilters: list[str],
    rate: int,
    subject: str,
    year: str,
) -> None:
    """Write `values` [channels, samples] as a plain EDF file (Kemp et al. 1992) of 1-s records.

    The physical range of a channel is symmetric and just holds its values, so that all of the 16
    bits are used and zero stays zero.
    """
    n, seconds = len(values), values.shape[1] // rate
    limits = [f"{np.ceil(1e3 * peak) / 1e3:.3f}" for peak in np.abs(values).max(axis=1)]
    fields = [
        (names, 16),
        ([""] * n, 80),  # transducer
        (units, 8),
        ([f"-{limit}" for limit in limits], 8),
        (limits, 8),
        (["-32767"] * n, 8),
        (["32767"] * n, 8),
        (prefilters, 80),
        ([str(rate)] * n, 8),  # samples per record
        ([""] * n, 32),
    ]
    header = "0".ljust(8) + f"X X X {subject}".ljust(80)
    header += f"Startdate 01-JAN-{year} X X X".ljust(80) + f"01.01.{year[2:]}00.00.00"
    header += str(256 * (n + 1)).ljust(8) + "".ljust(44)
    header += str(seconds).ljust(8) + "1".ljust(8) + str(n).ljust(4)
    header += "".join(text.ljust(width) for texts, width in fields for text in texts)
    scale = 32767 / np.array(limits, float)[:, None]
    digital = np.rint(values[:, : seconds * rate] * scale).astype("<i2")
    records = digital.reshape(n, seconds, rate).transpose(1, 0, 2)
    path.write_bytes(header.encode("ascii") + records.tobytes())


if __name__ == "__main__":
    main()
