"""Twelve leads: simulated ones against the heart's geometry, files in the layouts of others."""

import numpy as np
import odd_files as odd
import pytest
from test_audit_pages import functions_of

from biox.backbones.base import InputSpec
from biox.data.conditioning import condition
from biox.data.readers import twelve_lead as reader
from biox.data.readers.twelve_lead import LEADS, lead_name
from biox.data.simulate import physiology as phys
from biox.data.simulate.corpus import Kind, corpus
from biox.data.windows import Signal

FILES = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
SPEC = InputSpec("ecg", 12, 200.0, 10.0, "sd of all leads", "ecg_cbramod")
sim = functions_of("19_pretraining")
KIND = Kind(sim.twelve_leads, 250.0, "mV", LEADS, stream=4)


@pytest.fixture(scope="module")
def twelve():
    return corpus(KIND, 30, 10, seed=3)


def relations(x):
    """Einthoven's law and Goldberger's leads, from I and II; x [..., 12, samples]."""
    one, two = x[..., 0, :], x[..., 1, :]
    return np.stack([two - one, -(one + two) / 2, one - two / 2, two - one / 2], axis=-2)


# --- the simulator


def test_einthovens_and_goldbergers_relations_hold(twelve):
    assert twelve.channels == LEADS and twelve.unit == "mV"
    np.testing.assert_allclose(twelve.signals[:, 2:6], relations(twelve.signals), atol=1e-5)
    matrix = sim.lead_matrix()
    np.testing.assert_allclose(matrix[2:6], relations(matrix), atol=1e-12)
    assert np.linalg.matrix_rank(matrix) == 8  # nine potentials, one reference


def test_leads_see_the_heart_vector_from_their_directions():
    seen = sim.lead_matrix() @ sim.LEAD_VECTORS  # [12, 3]: each lead's own direction
    frontal = np.rad2deg(np.arctan2(seen[:6, 1], seen[:6, 0]))
    np.testing.assert_allclose(frontal, [0, 60, 120, -150, -30, 90], atol=1e-6)
    np.testing.assert_allclose(seen[:6, 2], 0, atol=1e-12)
    assert seen[6, 0] < 0 < seen[6, 2] and seen[11, 0] > 0  # V1 from the right front, V6 left


@pytest.mark.parametrize("axis", [-80.0, -20.0, 50.0, 120.0, 170.0])
def test_the_axis_is_that_of_the_main_vector_in_the_limb_leads(axis):
    shape = phys.EcgShape.draw(np.random.default_rng(0))
    _, vectors = sim.heart_vectors(np.random.default_rng(1), shape, axis, 0)
    leads = sim.lead_matrix() @ sim.LEAD_VECTORS @ vectors[:, 2]
    found = np.rad2deg(np.arctan2(leads[5] * 2 / np.sqrt(3), leads[0]))
    assert found == pytest.approx(axis, abs=1e-6)


def test_rhythm_and_conduction_are_in_the_signal():
    """Irregular in fibrillation, early beats where ectopic; a block widens the QRS."""
    rng, spread = np.random.default_rng(0), {0: [], 1: [], 2: []}
    for _ in range(60):
        _, beats, rhythm = sim.draw_beats(rng, 10.0)
        rr = np.diff(beats.inside(0, 10))
        spread[rhythm].append(rr.std() / rr.mean())
        assert (rhythm == 2) <= beats.ectopic.any()
    medians = {name: np.median(values) for name, values in spread.items()}
    assert medians[0] < 0.05 and min(medians[1], medians[2]) > 0.1
    widths = []
    for conduction in (0, 1, 2):
        rng = np.random.default_rng(4)
        shape, vectors = sim.heart_vectors(rng, phys.EcgShape.draw(rng), 40.0, conduction)
        power = (vectors[:, 1:5] ** 2).sum(0)
        center = (power * shape.center[1:5]).sum() / power.sum()
        spreads = shape.width[1:5] ** 2 + (shape.center[1:5] - center) ** 2
        widths.append(np.sqrt((power * spreads).sum() / power.sum()))
    assert min(widths[1:]) > 1.3 * widths[0]


def test_every_class_is_drawn_and_known_values_are_possible(twelve):
    known = dict(zip(twelve.names, corpus(KIND, 150, 10, seed=5).targets.T, strict=True))
    for name in ("rhythm", "conduction"):
        assert (np.bincount(known[name].astype(int), minlength=3) > 15).all()
    assert (np.bincount(np.digitize(known["axis_deg"], sim.AXIS_EDGES), minlength=3) > 20).all()
    assert known["heart_rate_bpm"].min() > 35 and known["heart_rate_bpm"].max() < 180


def test_conditioning_keeps_the_relations_between_leads(twelve):
    signal = Signal(twelve.signals[0].astype(float) + 3.0, 250.0, "mV", LEADS)
    x = condition(signal, SPEC).values
    assert x.shape == (12, 2000)
    assert x.std() == pytest.approx(1, rel=1e-6) and abs(x.mean()) < 1e-6
    np.testing.assert_allclose(x[2:6], relations(x), atol=1e-5)
    scaled = condition(Signal(1000 * signal.values, 250.0, "a.u.", LEADS), SPEC).values
    np.testing.assert_allclose(scaled, x, atol=1e-9)


# --- files


def write_wfdb(folder, name, x, rate, names=FILES):
    return odd.wfdb(folder, name, list(x), rate, ["mV"] * len(x), names)


@pytest.fixture
def ecg(twelve):
    """Twelve leads in mV at 250 Hz, called 500 Hz where a file needs it."""
    return twelve.signals[0].astype(float)


def test_ptb_xl_is_read_by_patient(ecg, tmp_path):
    for number in (1, 2, 3):
        write_wfdb(tmp_path / "records500/00000", f"0000{number}_hr", number * ecg, 500)
    write_wfdb(tmp_path / "records100/00000", "00001_lr", ecg[:, ::5], 100)
    rows = ["ecg_id,patient_id,scp_codes,strat_fold,filename_lr,filename_hr"]
    for number, patient in ((1, "15709.0"), (2, "13243.0"), (3, "15709.0")):
        files = f"records100/00000/0000{number}_lr,records500/00000/0000{number}_hr"
        rows.append(f"{number},{patient},\"{{'NORM': 100.0}}\",3,{files}")
    (tmp_path / "ptbxl_database.csv").write_text("\n".join(rows) + "\n")
    assert reader.subjects(tmp_path) == ["13243", "15709"]
    found = reader.read(tmp_path, "15709")
    names = ["records100/00000/00001_lr", "records500/00000/00001_hr", "records500/00000/00003_hr"]
    assert [r.name for r in found] == [f"{name}.hea" for name in names]
    assert [r.signals["ecg"].rate for r in found] == [100, 500, 500]
    assert found[1].signals["ecg"].channels == LEADS and found[1].label(0, 10) == -1
    np.testing.assert_allclose(found[2].signals["ecg"].values, 3 * ecg, atol=6e-4)


def test_code_15_is_read_as_the_challenge_writes_it(ecg, tmp_path):
    names = ("DI", "DII", "DIII", *FILES[3:])
    for exam in ("590673", "1169160"):
        write_wfdb(tmp_path, exam, ecg, 400, names)
    (tmp_path / "exams.csv").write_text("exam_id,age,patient_id\n590673,38,11\n1169160,73,7\n")
    assert reader.subjects(tmp_path) == ["7", "11"]
    (found,) = reader.read(tmp_path, "11")
    assert found.signals["ecg"].rate == 400 and found.name == "590673.hea"
    (tmp_path / "exams.csv").write_text("exam,patient\n1,2\n")
    reader._records.cache_clear()
    message = "exams.csv: expected the columns patient_id, exam_id, found exam, patient"
    with pytest.raises(ValueError, match=message):
        reader.subjects(tmp_path)


@pytest.mark.parametrize("kind", ["wfdb", "edf"])
def test_leads_are_found_by_name_in_any_order_and_unit(kind, ecg, tmp_path):
    order = np.random.default_rng(0).permutation(12)
    names, x = [FILES[i] for i in order], 1e3 * ecg[order]
    if kind == "wfdb":
        x, names, units = [*x, 0 * x[0]], [*names, "RESP"], ["uV"] * 13
        odd.wfdb(tmp_path, "a", x, 250, units, names, gain=5.0)
    else:
        channels = [(f"ECG {name}", "uV", x[i], 250) for i, name in enumerate(names)]
        odd.edf(tmp_path / "a.edf", channels)
    (found,) = reader.read(tmp_path, "a")
    assert found.signals["ecg"].unit == "mV" and found.signals["ecg"].channels == LEADS
    np.testing.assert_allclose(found.signals["ecg"].values, ecg, atol=2e-3)


@pytest.mark.parametrize(("change", "message"), [
    ({"names": [*FILES[:9], "RESP", *FILES[10:]]}, "the leads I, II, .*, V6, found no V4"),
    ({"names": ["II", "I", *FILES[2:]]}, "limb leads that fit together .*: names swapped"),
    ({"names": [*FILES[:8], "v2", *FILES[9:]]}, "expected lead V2 once, found V2 and v2"),
    ({"rate": 50}, "expected 100 Hz or more, found 50 Hz"),
    ({"folder": "records100/00000"}, "expected 100 Hz, as its folder says, found 500 Hz"),
    ({"at": 7, "value": 0.5}, "expected a signal in lead V2, found a flat line"),
    ({"at": np.s_[4, 100:110], "value": np.nan}, "lead aVL, found 10 values that are not finite"),
])  # fmt: skip
def test_bad_files_get_one_clear_sentence(change, message, ecg, tmp_path):
    file = {"names": FILES, "rate": 500, "folder": "", "at": 0, "value": ecg[0]} | change
    ecg[file["at"]] = file["value"]
    path = write_wfdb(tmp_path / file["folder"], "a", ecg, file["rate"], file["names"])
    with pytest.raises(ValueError, match=message) as error:
        reader.read(tmp_path, path.relative_to(tmp_path).with_suffix("").as_posix())
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_damaged_headers_and_absent_subjects_are_named(ecg, tmp_path):
    write_wfdb(tmp_path, "a", ecg, 500).write_text("nonsense\n")
    with pytest.raises(ValueError, match="a.hea: expected"):
        reader.read(tmp_path, "a")
    with pytest.raises(FileNotFoundError, match="expected records of subject b, found none"):
        reader.read(tmp_path, "b")


@pytest.mark.parametrize(("name", "lead"), [
    ("I", "I"), (" avr ", "aVR"), ("ECG II", "II"), ("DIII", "III"), ("Lead V5", "V5"),
    ("EKG_aVF", "aVF"), ("V6-REF", "V6"), ("MLII", None), ("V7", None), ("D", None), ("RESP", None),
])  # fmt: skip
def test_names_of_leads(name, lead):
    assert lead_name(name) == lead
