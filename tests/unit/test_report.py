import base64
import dataclasses
import io
import os
import re
import subprocess
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import erf

from mqi.case import DoseSource, Verdict
from mqi.dose.gamma import GammaCriteria
from mqi.dose.grid import DoseGrid
from mqi.errors import ResourceError
from mqi.log.account import BeamAccount, LayerAccount
from mqi.qa import PLANNING_SYSTEM, SAME_ENGINE, GammaFinding, QaCriteria, judge_beam, judge_case
from mqi.report import (
    BeamPage,
    CalibrationFacts,
    EngineFacts,
    FileHash,
    ReportContent,
    beam_artifact_markdown,
    case_artifact_markdown,
)
from mqi.report.html import html_report
from mqi.report.markdown import MOST_BYTES
from mqi.report.pdf import pdf_report
from mqi.report.pictures import BeamScene, LayerTime, beam_page
from mqi.report.planes import axis_label, interesting_point, plane_through, sample
from mqi.report.write import write_report
from mqi.words import VERDICT_NOTES, VERDICT_SYMBOLS, VERDICT_WORDS
from tests.requirement import program

CRITERIA = QaCriteria()
ISOCENTRE_MM = np.array([10.0, -130.0, 22.0])
FROM_ABOVE = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>&\"'</td></table>{{ 7*7 }}{% raw %}"
FORBIDDEN = "\x00\x1b[31m\u202ekcab\r\n| a | b |\n# heading\ud800"


def dose(scale=1.0, shift_mm=0.0, shape=(60, 80, 80), spacing_mm=2.5):
    """A box of 70 x 70 x 56 mm with soft edges, and an entrance plateau."""
    z, y, x = ((np.arange(n) - n / 2) * spacing_mm for n in shape)

    def box(u, half, soft):
        return 0.5 * (erf((u + half) / soft) - erf((u - half) / soft))

    depth = (0.45 + 0.55 * box(y, 35, 4)) * 0.5 * (erf((y + 95) / 3) - erf((y - 35) / 3))
    values = 2.0 * scale * box(z, 28, 6)[:, None, None] * depth[None, :, None] * box(x - shift_mm, 35, 6)
    return DoseGrid(values, ISOCENTRE_MM + np.array([x[0], y[0], z[0]]), np.full(3, spacing_mm))


def account(number=2, name="1G180:TX", off_layer=None, layers=34):
    rng = np.random.default_rng(number)
    return BeamAccount(
        beam_number=number,
        beam_name=name,
        source=DoseSource.LOG,
        calibration="G2",
        calibration_sha256="ab" * 32,
        layers=tuple(
            LayerAccount(
                number=n,
                energy_mev=160.0 - 2 * n,
                samples=9000,
                planned_mu=1.5,
                delivered_mu=1.5 + rng.normal(0, 0.003),
                parked_mu=0.001,
                transition_mu=0.0004,
                tail_mu=0.002,
                idle_mu=0.003,
                monitor2_mu=1.4985,
                spots=169,
                x_mean_mm=2.0 if n == off_layer else rng.normal(0, 0.03),
                x_sd_mm=0.12,
                y_mean_mm=rng.normal(0, 0.03),
                y_sd_mm=0.13,
                position_max_mm=2.5 if n == off_layer else 0.6,
                spot_mu_mean=0.0,
                spot_mu_sd=0.0001,
                spot_mu_max=0.001,
            )
            for n in range(1, layers + 1)
        ),
    )


def spots(off_layer=None, layers=34):
    rng = np.random.default_rng(1)
    x, y = (part.ravel() for part in np.meshgrid(np.arange(-36, 37, 6.0), np.arange(-36, 37, 6.0)))
    layer = np.repeat(np.arange(1, layers + 1), x.size)
    x, y = np.tile(x, layers), np.tile(y, layers)
    return SimpleNamespace(
        layer=layer,
        x_plan_mm=x,
        y_plan_mm=y,
        x_log_mm=x + rng.normal(0, 0.12, x.size) + 2.0 * (layer == off_layer),
        y_log_mm=y + rng.normal(0, 0.12, x.size),
    )


def finding(rate, against=SAME_ENGINE):
    criteria = GammaCriteria().model_dump(exclude={"maximum"})
    return GammaFinding(
        against=against,
        pass_rate_percent=rate,
        evaluated_points=0 if rate is None else 42_655,
        mean=None if rate is None else 0.31,
        maximum=None if rate is None else 1.28,
        reference_max_gy=2.0,
        evaluated_max_gy=2.01,
        **criteria,
    )


def scene(off_layer=None, tps=True):
    plan, log = dose(), dose(1.005, 1.5 if off_layer else 0.0)
    gamma = np.abs(log.values - plan.values) / 0.06
    gamma[plan.values < 0.2] = np.nan
    times = tuple(LayerTime(n, 2.4 * n, 2.4 * n + 1.1, "first" if n < 20 else "second") for n in range(1, 35))
    return BeamScene(
        log=log,
        plan=plan,
        gamma=plan.with_values(gamma),
        isocentre_mm=ISOCENTRE_MM,
        bev_axes=FROM_ABOVE,
        tps=dose(1.003) if tps else None,
        spots=spots(off_layer),
        timeline=times,
    )


def content(pages, *, failed=None, plan_gammas=(), **changes):
    values = {
        "case_key": "QA_01-7738fced",
        "patient_id": "QA 01",
        "plan_label": "G2 Treatment",
        "plan_uid": "1.2.826.0.1.3680043.8.498.1234567890",
        "fraction_number": 3,
        "machine": "G2",
        "irradiated_at": datetime(2025, 4, 24, 1, 44, 8),
        "engine": EngineFacts("analytic", "0.1.0", True, 12345, (("medium", "water"),)),
        "calibration": CalibrationFacts("G2", "2026-04", "ab" * 32),
        "verdict": judge_case([page.verdict for page in pages], plan_gammas, CRITERIA, failed),
        "pages": tuple(pages),
        "software_version": "0.1.0",
        "generated_at": datetime(2025, 4, 24, 11, 2, tzinfo=timezone(timedelta(hours=9), "KST")),
        "inputs": (FileHash("RP.1.2.3.dcm", "cd" * 32),),
        "outputs": (FileHash("dose_beam_2.dcm", "ef" * 32),),
        "warnings": ("Beam 4 was delivered in two parts.",),
    }
    return ReportContent(**(values | changes))


@pytest.fixture(scope="module")
def pages():
    """A good beam without a TPS dose, and one with a layer that is 2 mm off."""
    good = judge_beam(account(), [finding(99.6)], CRITERIA)
    off = judge_beam(
        account(4, "3G140:TX", off_layer=12), [finding(88.3), finding(97.0, PLANNING_SYSTEM)], CRITERIA
    )
    return [beam_page(good, scene(tps=False), CRITERIA), beam_page(off, scene(12), CRITERIA)]


@pytest.fixture(scope="module")
def report(pages):
    return content(pages, failed={5: "the engine ended with exit status 139"}, plan_gammas=[finding(99.0)])


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("reports") / "new" / "folder", report)


def bare(name, **changes):
    """A report without pictures, quick to make."""
    return content([BeamPage(judge_beam(account(name=name, layers=2), [finding(50.0)], CRITERIA))], **changes)


def text_of_pdf(path):
    tool = program("pdftotext", package="poppler-utils")
    return subprocess.run([tool, "-layout", path, "-"], capture_output=True, check=True, text=True).stdout


def test_the_page_says_verdict_beam_reason_and_place(written):
    page = written.html.read_text(encoding="utf-8")
    assert '<div class="word">FAIL</div>' in page
    assert "Beam 4 (3G140:TX): Layer 12 (136.0 MeV): spots +2.00 mm off in x on average" in page
    assert "Beam 5: no dose was computed: the engine ended with exit status 139" in page
    assert page.index("FAIL") < page.index("Layer 12") < page.index("<details")
    assert "Not for clinical use: computed with the analytic engine" in page
    assert "Beam 4 was delivered in two parts." in page
    assert "2025-04-24 11:02 KST" in page
    assert "cd" * 32 in page
    opened = re.findall(r'<details class="beam"( open)?>', page)
    assert opened == ["", " open"]


def test_the_page_needs_nothing_but_itself(written):
    page = written.html.read_text(encoding="utf-8")
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', page))
    without_pictures = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", page)
    for outside in ("http:", "https:", "href", "<link", "<script", "@import", "url(", "//"):
        assert outside not in without_pictures
    assert "default-src 'none'" in page


def test_the_page_opens_in_a_browser(written, tmp_path):
    browser = program("chromium", package="chromium")
    shot = tmp_path / "shot.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1000"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser, *options, profile, f"--screenshot={shot}", written.html.as_uri()]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    picture = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert picture.shape == (1000, 1200, 3)
    badge = np.all(np.abs(picture[:400] - np.array([180, 35, 24])) < 6, axis=-1)  # the colour of FAIL
    assert badge.sum() > 10_000


def test_the_pdf_says_the_same_and_numbers_its_pages(written):
    text = text_of_pdf(written.pdf)
    first = text.split("\f")[0]
    for said in (
        "FAIL",
        "QA_01-7738fced",
        "Layer 12 (136.0 MeV)",
        "Not for clinical use",
        "Signature",
        "88.3 %",
    ):
        assert said in first
    pages = [page for page in text.split("\f") if page.strip()]
    for number, page in enumerate(pages, start=1):
        assert f"page {number} of {len(pages)}" in page
        assert "QA_01-7738fced" in page


def test_the_pdf_can_be_rendered(written, tmp_path):
    tool = program("pdftoppm", package="poppler-utils")
    command = [tool, "-r", "40", "-f", "1", "-l", "2", "-png", str(written.pdf), str(tmp_path / "page")]
    subprocess.run(command, check=True, timeout=60)
    first, second = (np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("*.png")))
    assert np.ptp(first) > 200
    assert np.ptp(second) > 200


def test_the_same_content_gives_the_same_bytes():
    report = bare("1G180:TX")
    assert pdf_report(report) == pdf_report(report)
    assert html_report(report) == html_report(report)


@pytest.mark.parametrize("name", [HOSTILE, HOSTILE * 40, FORBIDDEN, "홍길동 QA", "$x^2$", "A" * 5000, ""])
def test_a_hostile_name_is_just_an_ugly_name(name, tmp_path):
    report = bare(
        name,
        case_key=name or "k",
        patient_id=name,
        plan_label=name,
        machine=name,
        engine=EngineFacts(name, name, False, None, ((name, name),)),
        calibration=CalibrationFacts(name, name, name),
        software_version=name,
        inputs=(FileHash(name, name),),
        warnings=(name,),
        failed={9: name},
    )
    files = write_report(tmp_path, report)
    page = files.html.read_text(encoding="utf-8")
    for tag in ("<script", "<img", "alert(2)>&"):
        assert tag not in page.split("</style>")[1]
    assert not set("\x00\x1b\u202e") & set(page)
    text = text_of_pdf(files.pdf)
    assert "Not for clinical use" not in text
    if name == HOSTILE:
        assert "&lt;script&gt;" in page
        assert "<script>" in text.replace("\n", "")
    if name.endswith("QA"):
        assert name in page
    for markdown in (case_artifact_markdown(report), beam_artifact_markdown(report.pages[0])):
        assert not re.search(r"(?<!\\)<", markdown)
        assert not [line for line in markdown.splitlines() if line.startswith("# heading")]
        assert len(markdown.encode()) < MOST_BYTES


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.text(max_size=60))
def test_whatever_a_beam_is_called_the_report_can_be_laid_out(name):
    report = bare(name, plan_label=name)
    assert html_report(report).count("<script") == 0
    assert pdf_report(report).startswith(b"%PDF")
    rows = [line for line in case_artifact_markdown(report).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}


def test_a_clinical_engine_has_no_banner(pages):
    report = content(pages, engine=EngineFacts("moqui", "2.0", False))
    assert "Not for clinical use" not in html_report(report)
    assert "Not for clinical use" not in case_artifact_markdown(report)


def test_a_report_has_no_place_for_a_patients_name():
    fields = {field.name for field in dataclasses.fields(ReportContent)}
    assert not {name for name in fields if "name" in name or "birth" in name}


def test_a_passing_case_says_so_and_shows_no_reason():
    report = content(
        [BeamPage(judge_beam(account(), [finding(99.0)], CRITERIA))], plan_gammas=[finding(99.0)]
    )
    page = html_report(report)
    assert '<div class="word">PASS</div>' in page
    assert ">Why<" not in page
    assert VERDICT_NOTES[Verdict.PASS] in page
    assert VERDICT_NOTES[Verdict.PASS] in case_artifact_markdown(report)
    assert pdf_report(report)


def test_a_case_where_nothing_could_be_judged_has_a_report_too():
    empty = account().model_copy(update={"layers": ()})
    page = beam_page(judge_beam(empty, [finding(None)], CRITERIA), scene(), CRITERIA)
    report = content([page], failed={3: "no log"}, plan_gammas=[finding(None)])
    assert '<div class="word">NOT EVALUABLE</div>' in html_report(report)
    assert pdf_report(report)
    assert "? NOT EVALUABLE" in case_artifact_markdown(report)
    assert content([], failed={3: "no log"}).verdict.verdict is Verdict.NOT_EVALUABLE
    assert html_report(content([], failed={3: "no log"}))


def test_layers_that_are_not_known_do_not_stop_the_pictures():
    unknown = account(layers=3)
    nan = float("nan")
    layers = [
        layer.model_copy(update={"x_mean_mm": nan, "position_max_mm": nan, "spots": 0, "delivered_mu": 0.0})
        for layer in unknown.layers
    ]
    beam = judge_beam(unknown.model_copy(update={"layers": tuple(layers)}), [finding(99.0)], CRITERIA)
    page = beam_page(beam, dataclasses.replace(scene(), spots=None, timeline=()), CRITERIA)
    assert [picture.title for picture in page.pictures] == ["Dose and gamma", "Profiles", "Layers"]
    assert html_report(content([page]))


def test_a_dose_of_nothing_or_of_a_single_slice_is_drawn():
    beam = judge_beam(account(), [finding(None)], CRITERIA)
    for log in (dose(0.0), dose(shape=(1, 80, 80))):
        nowhere = log.with_values(np.full(log.values.shape, np.nan))
        place = BeamScene(log=log, plan=log, gamma=nowhere, isocentre_mm=ISOCENTRE_MM, bev_axes=FROM_ABOVE)
        page = beam_page(beam, place, CRITERIA)
        assert "No point was evaluated" in page.pictures[0].caption


def test_artifacts_stay_small_and_show_the_worst_beam_first(report, pages):
    markdown = case_artifact_markdown(report)
    assert len(markdown.encode()) < MOST_BYTES
    assert markdown.count("](data:image/png;base64,") == 2
    assert markdown.index("### Beam 4") < markdown.index("### Beam 2")
    assert "**x +2.00 mm, max 2.50 (layer 12) ✗**" in markdown.replace("\u00a0", " ")
    assert len(beam_artifact_markdown(pages[1]).encode()) < MOST_BYTES


def test_pictures_that_do_not_fit_an_artifact_are_left_out(pages):
    noise = os.urandom(150_000)
    many = [
        BeamPage(
            page.verdict.model_copy(update={"beam_number": n}),
            dataclasses.replace(page.overview, png=noise),
            page.pictures,
        )
        for n, page in enumerate(pages * 2)
    ]
    markdown = case_artifact_markdown(content(many))
    assert len(markdown.encode()) <= MOST_BYTES
    assert markdown.count("](data:image/png") == 1


def test_many_reasons_are_counted_not_all_shown_on_top():
    beams = [BeamPage(judge_beam(account(n, f"B{n}", 3, 5), [finding(50.0)], CRITERIA)) for n in range(1, 8)]
    assert "6 more: see the beams below." in html_report(content(beams))


def test_a_report_is_written_whole_or_not_at_all(written, tmp_path):
    assert sorted(path.name for path in written.html.parent.iterdir()) == ["report.html", "report.pdf"]
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(ResourceError, match="could not be written") as caught:
        write_report(blocked, bare("1G180:TX"))
    assert caught.value.case == "QA_01-7738fced"
    assert blocked.read_text() == "in the way"


def test_a_second_report_replaces_the_first(tmp_path):
    write_report(tmp_path, bare("first"))
    files = write_report(tmp_path, bare("second"))
    assert "second" in files.html.read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 2


def test_pages_that_are_not_the_verdicts_beams_are_refused(report):
    with pytest.raises(ValueError, match="not the beams of its verdict"):
        dataclasses.replace(report, pages=report.pages[:1])
    with pytest.raises(ValueError, match="no time zone"):
        dataclasses.replace(report, generated_at=datetime(2025, 1, 1))


def test_a_picture_is_a_png_of_the_size_it_says(pages):
    for picture in (*pages[0].pictures, pages[0].overview):
        with Image.open(io.BytesIO(picture.png)) as image:
            assert image.size == (picture.width_px, picture.height_px)
        assert base64.b64decode(picture.data_uri.split(",")[1]) == picture.png


def test_planes_go_through_the_isocentre_if_it_has_dose_and_else_through_the_maximum():
    grid = dose()
    point, at_isocentre = interesting_point(grid, ISOCENTRE_MM)
    assert at_isocentre
    assert np.allclose(point, ISOCENTRE_MM, atol=1.3)
    for elsewhere in (np.array([900.0, 0.0, 0.0]), ISOCENTRE_MM + np.array([0.0, 60.0, 0.0])):
        point, at_isocentre = interesting_point(grid, elsewhere)
        assert not at_isocentre
        assert sample(grid, point[None])[0] == grid.values.max()


def test_planes_show_the_grids_values_where_they_stand_in_the_patient():
    turned = np.array([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8], [0.8, 0.0, -0.6]])
    base = dose(shape=(30, 40, 50), spacing_mm=3.0)
    for axes, names in (
        (np.eye(3), {"Transversal", "Coronal", "Sagittal"}),
        (turned, {"Across j", "Across k", "Coronal"}),
    ):
        grid = DoseGrid(base.values, base.origin_mm, base.spacing_mm, axes)
        point, _ = interesting_point(grid, np.array([1e4, 0.0, 0.0]))
        planes = [plane_through(grid, point, normal, ISOCENTRE_MM) for normal in (0, 1, 2)]
        assert {plane.name for plane in planes} == names
        k = np.unravel_index(np.argmax(grid.values), grid.values.shape)[0]
        values = sample(grid, planes[2].points_mm)
        assert np.isfinite(values).all()
        assert np.isclose(values.max(), grid.values[k].max())


def test_directions_are_said_in_the_patients_words():
    assert axis_label(np.array([-1.0, 0.0, 0.0]), "i") == "to right / mm"
    assert axis_label(np.array([0.0, 0.0, 1.0]), "k") == "to superior / mm"
    assert axis_label(np.array([0.7, 0.7, 0.0]), "j") == "along j / mm"


def test_every_verdict_has_its_words():
    for words in (VERDICT_WORDS, VERDICT_SYMBOLS, VERDICT_NOTES):
        assert set(words) == set(Verdict)
