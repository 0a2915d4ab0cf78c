"""Files as people have them: each has its right value, or one sentence that says what is wrong."""

from dataclasses import replace

import numpy as np
import odd_files as odd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from raw_files import ECG, EEG, EMG, PPG, heart, write_fog

from biox.data.conditioning import condition
from biox.data.quality import RANGES, bad_windows, beats_per_minute, checked, implausible
from biox.data.readers import fog, recordings
from biox.data.readers.files import known_channels, read_file
from biox.data.windows import UNLABELLED, Signal, cut

CLASSES = ("rest", "task")
ECG10, PPG10 = replace(ECG, seconds=10.0), replace(PPG, seconds=10.0)
EEG1, EEG2 = (replace(EEG, channels=n, seconds=10.0, unit="uV/100") for n in (1, 2))
HEART = {"ecg": ["ECG"], "ppg": ["PLETH"]}


def read(folder, picks, *rows):
    """The recording of subject s1 whose file is the only one there."""
    if not (folder / "labels.csv").exists():
        (file,) = [f for f in folder.iterdir() if f.suffix in (".edf", ".bdf", ".fif", ".hea")]
        odd.labels(folder, *(rows or [f"{file.name},s1,0,30,rest"]))
    (found,) = recordings.read(folder, "s1", picks, CLASSES)
    return found


def refused(folder, picks, message, *rows):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read(folder, picks, *rows)
    assert "\n" not in str(error.value)


def windows(recording, step=5.0, **specs):
    return cut(recording, specs, 10.0, step, CLASSES)


# Time


def paused(folder, onsets, kind="EDF+D", notes=(), **header):
    """120 s of ECG and PPG, of which 30 to 60 s of the samples beat twice as fast."""
    t = odd.clock(120, 200)
    fast = (t >= 60) & (t < 90)
    ecg = np.where(fast, heart(120, 200, 120), heart(120, 200, 60))
    channels = [("ECG", "mV", ecg, 200), ("PLETH", "", np.sin(t), 100)]
    return odd.edf(folder / "a.edf", channels, onsets=onsets, kind=kind, notes=notes, **header)


PAUSE = [*range(60), *range(100, 160)]


def test_a_pause_moves_no_label_and_no_window_crosses_it(tmp_path, caplog):
    paused(tmp_path, PAUSE, notes=[(150, 5, "BAD_loose")])
    rows = "a.edf,s1,0,60,rest", "a.edf,s1,100,130,task", "a.edf,s1,130,160,rest"
    got = read(tmp_path, HEART, *rows)
    assert got.seconds == 160 and got.signals["ppg"].rate == 100
    assert sorted(got.marked) == [(60, 100, "a pause"), (150, 155, "marked BAD_loose")]
    found = windows(got, ecg=ECG10, ppg=PPG10)
    inside = [s for s in found.starts if s < 100]
    assert max(inside) == 50 and 100 in found.starts and max(found.starts) == 140
    for window, label in zip(found.signals["ecg"], found.labels, strict=True):
        rate = beats_per_minute(Signal(window, 100.0, "a.u.", ("ECG",)), "ecg")
        assert label == UNLABELLED or rate == pytest.approx((60, 120)[label], abs=3)
    assert caplog.text.count("no window touches a pause (40.00 s)") == 1


def test_marks_of_edf_are_those_of_its_annotations_alone(tmp_path):
    """Samples may look like an annotation; ``text@@name`` is about one channel."""
    x = np.zeros(30 * 200)
    channels = [(name, "a", x, 200, {"scale": (-32768, 32767)}) for name in ("F3", "C3")]
    channels[0][2][:3] = np.frombuffer(b"+5\x14\xff\x14\x00", "<i2")
    notes = [(3, 2, "BAD_all"), (8, 1, "bad contact@@C3"), (20, 1, "note")]
    path = odd.edf(tmp_path / "a.edf", channels, onsets=range(1, 31), notes=notes, kind="EDF+C")
    assert read_file(path, {"eeg": ["F3"]})[1] == [(2, 4, "marked BAD_all")]
    assert read_file(path, {"eeg": ["C3"]})[1][1:] == [(7, 8, "marked bad contact")]


def test_z_scores_leave_pauses_out():
    x = np.random.default_rng(0).normal(size=(1, 100 * 200))
    x[:, 20 * 200 : 90 * 200] = 5.0
    spec = replace(EMG, channels=1, seconds=10.0)
    got = condition(Signal(x, 200.0, "a.u.", ("a",)), spec, marked=[(20.0, 90.0, "a pause")])
    kept = np.r_[0 : 20 * 130, 90 * 130 : 100 * 130]
    assert got.values[:, kept].std() == pytest.approx(1, abs=1e-6)


def test_channels_of_one_modality_come_at_the_highest_of_their_rates(tmp_path, caplog):
    fast, slow = odd.brain(30, 200), np.sin(2 * np.pi * 3 * odd.clock(30, 100)) * 50
    odd.edf(tmp_path / "a.edf", [("F3", "uV", fast, 200), ("C3", "uV", slow, 100)])
    got = read(tmp_path, {"eeg": ["F3", "C3"]}).signals["eeg"]
    assert got.rate == 200 and "eeg of [100.0, 200.0] Hz brought to one rate" in caplog.text
    np.testing.assert_allclose(got.values[0], fast, atol=0.1)
    np.testing.assert_allclose(got.values[1][::2], slow, atol=0.1)


@pytest.mark.parametrize(("onsets", "kind", "message"), [
    (PAUSE, "EDF+C", "record 60 at 59 s, the next at 100 s"),
    ([*range(60), *range(30, 90)], "EDF+D", "record 60 at 59 s, the next at 30 s"),
    ([i * 1.001 for i in range(120)], "EDF+D", "120 records until 120.119 s"),
    ([*range(119), 10**6], "EDF+D", "pauses of a day at most"),
    (None, "EDF+D", "found record 1 at nan s"),
])  # fmt: skip
def test_onsets_that_contradict_the_header_are_refused(onsets, kind, message, tmp_path):
    paused(tmp_path, onsets, kind)
    refused(tmp_path, HEART, message)


def test_times_count_from_the_first_sample(tmp_path, caplog):
    paused(tmp_path, [0.5 + i for i in range(120)], "EDF+C")
    assert read(tmp_path, HEART, "a.edf,s1,0,120,rest").seconds == 120
    paused(tmp_path, range(3600, 3720), "EDF+C")
    read(tmp_path, HEART)
    assert "a.edf begins at 3600 s of its own clock" in caplog.text
    (tmp_path / "labels.csv").unlink()
    row = "a.edf,s1,3600,3630,rest", "a.edf,s1,3630,3720,task"
    refused(tmp_path, HEART, "found 3600 to 3720: on the file's own clock.*begins at 3600 s", *row)


def test_fif_marks_lie_where_the_file_says(tmp_path):
    x = 1e-6 * odd.brain(60, 200)
    x[20 * 200 : 25 * 200] = 0
    notes = [(20, 5, "BAD_ACQ_SKIP"), (40, 0, "EDGE boundary"), (50, 2, "remark")]
    odd.fif(tmp_path / "a_raw.fif", [("F3", "eeg", x)], 200.0, notes=notes, first=20000)
    got = read(tmp_path, {"eeg": ["F3"]})
    assert [m[:2] for m in got.marked] == [(20, 25), (40, 40)]
    assert set(np.arange(0, 51, 5)) - set(windows(got, eeg=EEG1).starts) == {15, 20, 35}
    assert not np.isfinite(got.signals["eeg"].values[0, 4001:4999]).any()


def test_each_wfdb_signal_has_its_own_rate(tmp_path):
    slow = odd.clock(29, 249.89 / 4)
    signals = [heart(30, 249.89)[: 4 * len(slow)], np.sin(5 * slow)]
    odd.wfdb(tmp_path, "a", signals, 249.89 / 4, ["mV", "NU"], frames=[4, 1])
    got = read(tmp_path, {"ecg": ["II"], "ppg": ["PLETH"]}).signals
    assert (got["ecg"].rate, got["ppg"].rate) == (249.89, 249.89 / 4)
    np.testing.assert_allclose(got["ecg"].values[0], signals[0], atol=1e-3)


def test_wfdb_segments_and_what_lies_between(tmp_path):
    signals = [heart(30, 125), np.sin(odd.clock(30, 125))]
    for name in ("one", "two"):
        odd.wfdb(tmp_path, name, signals, 125, ["mV", "NU"])
    text = "all/4 2 125 10000\nlayout 0\none 3750\n~ 2500\ntwo 3750\n"
    (tmp_path / "all.hea").write_text(text)
    channels = "~ 0 1000(0)/mV 0 0 0 0 0 II\n~ 0 1000(0)/NU 0 0 0 0 0 PLETH\n"
    (tmp_path / "layout.hea").write_text(f"layout 2 125 0\n{channels}")
    odd.labels(tmp_path, "all.hea,s1,0,30,rest", "all.hea,s1,50,80,task")
    got = read(tmp_path, {"ecg": ["II"], "ppg": ["PLETH"]})
    assert got.marked == [(30, 50, "a pause")] and got.seconds == 80
    assert set(windows(got, ecg=ECG10).starts) == {0, 5, 10, 15, 20, 50, 55, 60, 65, 70}
    odd.wfdb(tmp_path, "two", signals, 125, ["uV", "NU"])
    refused(tmp_path, {"ecg": ["II"]}, "expected segments alike, found two at 125 Hz .*'uV'")
    odd.wfdb(tmp_path, "two", signals, 250, ["mV", "NU"])
    refused(tmp_path, {"ecg": ["II"]}, "found two at 250 Hz")


@pytest.mark.parametrize("unit", [1, 1e3, 500], ids=["seconds", "milliseconds", "rows"])
def test_lost_rows_of_fog_move_nothing(unit, tmp_path, caplog):
    odd.fog(tmp_path, step=unit / 500, lost=(5, 8))
    (tmp_path / "001" / "._task_1.txt").write_bytes(b"\x00\x05\x16\x07")
    (got,) = fog.read(tmp_path, "001")
    assert got.marked == [(5, 8, "lost rows")] and got.seconds == 20
    marks = np.flatnonzero(np.nan_to_num(got.signals["eeg"].values[0]) > 300) / 500
    np.testing.assert_allclose(marks, [10.0, 10.002, 10.004, 10.006, 10.008], atol=1e-9)
    found = cut(got, {"eeg": EEG}, 3.0, 1.0, fog.CLASSES)
    assert [s for s in found.starts if 2 < s < 8] == [] and {2, 8} <= set(found.starts)
    assert "1500 rows lost in 1 places" in caplog.text


def test_fog_clocks_that_say_something_else_are_refused(tmp_path, caplog):
    odd.fog(tmp_path, step=1 / 250)
    with pytest.raises(ValueError, match="expected 500 rows a second, found steps of 0.004"):
        fog.read(tmp_path, "001")
    table = np.loadtxt(odd.fog(tmp_path), delimiter=",")
    write_fog(tmp_path, table=np.concatenate([table[:6000], table[5000:]]))
    with pytest.raises(ValueError, match="found 10 after 11.998 in row 6001"):
        fog.read(tmp_path, "001")
    table[:, 1] = np.round(table[:, 1] + np.random.default_rng(0).uniform(0, 0.004, len(table)), 3)
    write_fog(tmp_path, table=table)  # a clock that jitters loses no rows
    assert fog.read(tmp_path, "001")[0].seconds == 20
    write_fog(tmp_path, rows=600)  # noise where the time should be
    assert fog.read(tmp_path, "001")[0].seconds == 1.2 and "no clock in column 2" in caplog.text


@settings(max_examples=8, deadline=None)
@given(
    rate=st.floats(50, 2000),
    new=st.sampled_from([100.0, 125.0, 130.0, 200.0, 500.0]),
    method=st.sampled_from(["linear", "polyphase"]),
)
@example(99.9814, 200.0, "linear")  # was 5 s off when the ratio of rates was rounded
@example(99.9814, 200.0, "polyphase")
@example(50.0, 200.0, "linear")  # the published way moves the last sample by 15 ms
def test_resampling_of_any_rate_stays_within_10_ms_in_8_hours(rate, new, method):
    """A pulse 20 s before the end is where it was; at high rates half an hour has to do."""
    n, spec = round((8 if rate < 100 else 0.5) * 3600 * rate), replace(EMG, channels=1, rate=new)
    at, x = (n - 1) / rate - 20.0, np.zeros((1, n))
    last = np.arange(max(0, n - round(60 * rate)), n)
    x[0, last] = np.exp(-((last / rate - at) ** 2) / 2)
    got = condition(Signal(x, rate, "a.u.", ("a",)), spec, method, z_scored=False).values[0]
    tail = np.arange(len(got) - round(60 * new), len(got))
    weights = got[tail] * (got[tail] > 0.01)
    assert abs((tail / new * weights).sum() / weights.sum() - at) < 0.01


# Headers


def test_limits_give_the_scale(tmp_path):
    x, path = odd.brain(30, 200), tmp_path / "a.edf"

    def eeg(**changed):
        odd.edf(path, [("F3", "uV", x, 200, changed), ("C3", "uV", x, 200, {"low": 0, "high": 0})])

    inverted = {"scale": (3000, -3000), "low": 3000, "high": -3000}  # an amplifier may do that
    for changed in (inverted, {"low": "-3276,8", "high": "3276,8"}):  # decimal commas
        eeg(**changed)
        found = read(tmp_path, {"eeg": ["F3"]}).signals["eeg"].values[0]
        np.testing.assert_allclose(found, x, atol=0.1)
    refused(tmp_path, {"eeg": ["C3"]}, "limits that give C3 a scale, found physical 0 to 0 uV")
    for changed in ({"digital low": 5, "digital high": 5}, {"low": "nan"}, {"low": ""}):
        eeg(**changed)
        refused(tmp_path, {"eeg": ["F3"]}, "limits that give F3 a scale")


@pytest.mark.parametrize(("header", "message"), [
    ({"duration": 0}, "records that last some time, found 0 s with"),
    ({"duration": "-1"}, "found -1 s with"), ({"duration": ""}, "found nan s with"),
    ({"records": 20}, r"a.edf: expected \d+ bytes by its header, found \d+"),
    ({"records": 40}, r"a.edf: expected \d+ bytes by its header"), ({"records": 0}, "bytes by"),
    ({"size": 512}, "expected 768 bytes of header"),
])  # fmt: skip
def test_headers_that_contradict_the_file_are_refused(header, message, tmp_path):
    pulse = np.sin(odd.clock(30, 200))
    channels = [("ECG", "mV", heart(30, 200), 200), ("PLETH", "", pulse, 200)]
    odd.edf(tmp_path / "a.edf", channels, **header)
    refused(tmp_path, HEART, message)


def test_a_channel_without_samples_is_refused_and_the_others_are_read(tmp_path):
    channels = [("ECG", "mV", heart(30, 200), 200), ("X", "uV", np.zeros(1), 1e-9)]
    odd.edf(tmp_path / "a.edf", channels)
    assert read(tmp_path, {"ecg": ["ECG"]}).seconds == 30
    refused(tmp_path, {"eeg": ["X"]}, "a.edf: expected samples of X, found none")


def test_a_number_of_records_that_is_not_stated_is_said_once(tmp_path, caplog):
    path = odd.edf(tmp_path / "a.edf", [("ECG", "mV", heart(30, 200), 200)], records=-1)
    assert read(tmp_path, {"ecg": ["ECG"]}).seconds == 30
    assert caplog.text.count(f"{path}: no number of records in the header, 30 by its size") == 1


def test_what_mne_warns_of_reaches_the_user_once(tmp_path, caplog):
    path = odd.fif(tmp_path / "a.fif", [("ECG", "ecg", heart(30, 200))], 200.0)
    assert read(tmp_path, {"ecg": ["ECG"]}).seconds == 30
    assert caplog.text.count(f"{path}: This filename") == 1


def test_channels_of_one_name_are_picked_by_number(tmp_path):
    channels = [("T8-P8", "uV", odd.brain(30, 200, i), 200) for i in (0, 1)]
    odd.edf(tmp_path / "a.edf", channels)
    refused(tmp_path, {"eeg": ["T8-P8"]}, "named 'T8-P8', found 2: pick one by its number .*1 or 2")
    for pick in (2, "#2", "T8-P8-1"):
        got = read(tmp_path, {"eeg": [pick]}).signals["eeg"]
        np.testing.assert_allclose(got.values[0], channels[1][2], atol=0.1)
        assert got.unit == "uV"


def test_wfdb_without_rate_or_gain_is_no_250_hz_and_no_millivolt(tmp_path, caplog):
    path = odd.wfdb(tmp_path, "a", [odd.brain(30, 360) / 1000], 360, ["mV"], names=["F3"])
    text = path.read_text()
    path.write_text(text.replace("1000.0(0)/mV", "0(0)/mV"))
    assert read(tmp_path, {"eeg": ["F3"]}).signals["eeg"].unit == "a.u."
    assert f"{path}: F3 has no gain, and so no unit" in caplog.text
    path.write_text(text.replace("a 1 360 10800", "a 1"))
    refused(tmp_path, {"eeg": ["F3"]}, "expected a sampling rate in the first line, found none")


# Amplitudes


def eeg_file(folder, scale=1.0, level=0.0):
    x = odd.brain(60, 200) * scale + level
    odd.edf(folder / "a.bdf", [("F3", "uV", x, 200), ("C3", "uV", x, 200)])
    return read(folder, {"eeg": ["F3", "C3"]})


@pytest.mark.parametrize(("scale", "cause"), [
    (1e3, "uV called mV"), (1e-3, "mV called uV"), (60, "a dead or wrong channel"),
])  # fmt: skip
def test_implausible_eeg_never_reaches_a_model_of_volts(scale, cause, tmp_path):
    with pytest.raises(ValueError, match=f"a.bdf of s1: eeg F3: expected an ampl.*likely.*{cause}"):
        windows(eeg_file(tmp_path, scale), eeg=EEG2)


def test_microvolts_that_say_volts_are_named(tmp_path, caplog):
    channels = [("F3", "eeg", odd.brain(60, 200)), ("ECG", "ecg", 1e3 * heart(60, 200))]
    odd.fif(tmp_path / "a_raw.fif", channels, 200.0)
    got = read(tmp_path, {"eeg": ["F3"], "ecg": ["ECG"]})
    message = "found 1.7[34]e[+]07 uV; likely microvolts that are called"
    with pytest.raises(ValueError, match=message):
        windows(got, eeg=EEG1)
    assert len(windows(got, ecg=ECG10)) == 11  # z-scores do not depend on it
    assert "ecg ECG: expected an amplitude" in caplog.text


def test_a_level_is_taken_off_and_a_wandering_one_refused(tmp_path, caplog):
    want = windows(eeg_file(tmp_path), eeg=EEG2).signals["eeg"]
    got = windows(eeg_file(tmp_path, level=-18000), eeg=EEG2).signals["eeg"]
    np.testing.assert_allclose(got, want, atol=0.02)
    assert "a.bdf of s1: level taken off, in uV: -1" in caplog.text
    drift = eeg_file(tmp_path, level=np.linspace(-1500, 1500, 60 * 200))
    with pytest.raises(ValueError, match="eeg F3: expected a steady level.*filter the file first"):
        windows(drift, eeg=EEG2)


def test_ranges_have_sources_and_hold_usual_signals():
    for modality, (low, usual, high, source) in RANGES.items():
        x = np.random.default_rng(0).normal(size=(1, 20000))
        assert low < usual < high and len(source) > 50
        for volts, plausible in ((usual, True), (low / 2, False), (high * 2, False)):
            signal = Signal(x * volts, 200.0, "V", ("a",))
            assert (implausible(signal, modality) == "") is plausible
    assert checked(Signal(x, 200.0, "a.u.", ("a",)), "eeg", "", True).values is x


# Marks


def test_bad_channels_are_refused_where_picked(tmp_path):
    channels = [(name, "eeg", 1e-6 * odd.brain(30, 200)) for name in ("F3", "C3")]
    odd.fif(tmp_path / "a_raw.fif", channels, 200.0, bads=["C3"])
    odd.fif(tmp_path / "b_eeg.fif", channels, 200.0)
    (tmp_path / "b_channels.tsv").write_text("name\tstatus\nF3\tgood\nC3\tbad\n")  # of BIDS
    for path in (tmp_path / "a_raw.fif", tmp_path / "b_eeg.fif"):
        assert read_file(path, {"eeg": ["F3"]})[0]["eeg"].seconds == 30
        assert known_channels(path) == {"eeg": ["F3"]}
        with pytest.raises(ValueError, match=r"found \['C3'\] marked as bad"):
            read_file(path, {"eeg": ["F3", "C3"]})


def test_a_wrong_checksum_of_a_wfdb_record_is_named(tmp_path, caplog):
    path = odd.wfdb(tmp_path, "a", [heart(20, 250)], 250, ["mV"])
    assert read_file(path, {"ecg": ["II"]})[0]["ecg"].rate == 250 and not caplog.text
    samples = np.fromfile(path.with_suffix(".dat"), "<i2")
    samples[1000] += 7
    samples.tofile(path.with_suffix(".dat"))
    read_file(path, {"ecg": ["II"]})
    assert "II: expected the checksum" in caplog.text


@pytest.mark.parametrize("code", [0.0, -1.0, 32767.0, -32768.0])
def test_codes_for_no_value_make_windows_bad(code):
    x = np.random.default_rng(0).normal(size=(1, 6000))
    x[0, 1000:1300] = code
    signal = {"ppg": Signal(x, 125.0, "a.u.", ("PLETH",))}
    assert bad_windows(signal, [0.0, 16.0], 16.0) == ["ppg PLETH without a value", ""]
    x[0, 1100:1300] = np.random.default_rng(1).normal(size=200)  # too short to tell, for 0 and -1
    assert (bad_windows(signal, [0.0], 16.0) == [""]) is (abs(code) < 2)


def test_samples_that_wfdb_calls_invalid_make_windows_bad(tmp_path):
    path = odd.wfdb(tmp_path, "a", [heart(30, 125)], 125, ["mV"], names=["ECG"])
    x = np.fromfile(path.with_suffix(".dat"), "<i2")
    x[1000:1010] = -32768
    x.tofile(path.with_suffix(".dat"))
    assert windows(read(tmp_path, {"ecg": ["ECG"]}), 10.0, ecg=ECG10).starts.tolist() == [10, 20]


# Tables of labels


@pytest.fixture
def table(tmp_path):
    odd.wfdb(tmp_path, "a", [heart(60, 125)], 125, ["mV"])
    rows = "file,subject,start_s,stop_s,label\na.hea,s1,0,29.5,rest\na.hea,s1,29.5,60,task\n"
    return tmp_path, rows


@pytest.mark.parametrize("change", [
    lambda x: x.encode("utf-8-sig"), lambda x: x.encode("utf-16"),
    lambda x: x.replace(",", ";").encode(), lambda x: x.replace(",", "\t").encode(),
    lambda x: x.replace(",", ";").replace("9.5", "9,5").encode("utf-16"),
    lambda x: ("sep=;\n" + x.replace(",", ";")).encode(),
    lambda x: x.replace("\n", "\r\n").encode(),
    lambda x: x.replace("file,", "File ,").replace("rest", " rest ").encode(),
    lambda x: (x + "b.hea,Zoë,0,1,rest\n").encode("cp1252"),
    lambda x: x.replace("a.hea,s1,29", "./a.hea ,S1 ,29").encode(),
])  # fmt: skip
def test_tables_of_spreadsheets_are_read(change, table):
    folder, rows = table
    (folder / "labels.csv").write_bytes(change(rows))
    (got,) = recordings.read(folder, "s1", {"ecg": ["II"]}, CLASSES)
    assert [got.label(0, 20), got.label(20, 39), got.label(30, 60)] == [0, UNLABELLED, 1]


def test_labels_that_go_on_after_the_file_are_said(table, caplog):
    folder, rows = table
    (folder / "labels.csv").write_text(rows.replace("60,task", "70,task"))
    recordings.read(folder, "S1", {"ecg": ["II"]}, CLASSES)
    assert "a.hea ends at 60 s, but its segments at 70 s" in caplog.text
