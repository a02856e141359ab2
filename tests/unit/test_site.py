"""site.yaml: what is right takes effect, what is wrong is named with its line and what was meant."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.environment import Home
from deployments.site import TEMPLATE, SiteSettings, describe, load_site_file, make_site_file
from deployments.yaml_lines import parse_yaml
from mqi.errors import ConfigurationError
from mqi.log.calibration import builtin_calibration

SPECIFICATION = """\
app:
  name: "MQI Communicator"
  version: "2.0.0"
  environment: "production"
paths:
  local_logdata: "/path/to/local/data"
  remote_workspace: "/path/to/remote/workspace"
resources:
  max_concurrent_jobs: 10
  gpu_count: 8
  min_disk_space_gb: 100
processing:
  scan_interval_seconds: 60
  retry_policy:
    max_attempts: 3
    base_delay: 1.0
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").make()


def load(home: Home, text: str) -> SiteSettings:
    home.site.write_text(text)
    return load_site_file(home)


def refusal(home: Home, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(home, text)
    return str(caught.value)


def test_the_file_that_is_written_says_what_the_defaults_are(home: Home) -> None:
    make_site_file(home, None)
    assert home.site.read_text() == TEMPLATE.read_text()
    assert describe(load_site_file(home)) == describe(load(home, ""))


def test_a_section_of_the_written_file_works_once_its_comment_signs_are_removed(home: Home) -> None:
    optional = TEMPLATE.read_text().partition("\n# ssh:")
    lines = (optional[1] + optional[2].partition("# Calibration files")[0]).splitlines()
    settings_only = [
        line.removeprefix("# ") for line in lines if line[2:3].islower() or line.startswith("#  ")
    ]
    site = load(home, "\n".join(["paths: {remote_workspace: /scratch/mqi}", *settings_only]))
    assert site.host_settings().name == "hpc" and site.ssh and site.ssh.jump
    assert site.engine.command == ("/opt/moqui/tps_env",)
    assert site.qa == load(home, "").qa


def test_an_existing_file_is_never_overwritten(home: Home) -> None:
    home.site.write_text("app: {name: Mine}\n")
    make_site_file(home, None)
    assert load_site_file(home).app.name == "Mine"


def test_the_specifications_keys_reach_the_parts_that_use_them(home: Home) -> None:
    site = load(home, SPECIFICATION)
    host = site.host_settings()
    assert site.inboxes() == ("/path/to/local/data",)
    assert host.workspace == "/path/to/remote/workspace"
    assert (host.slots, host.min_disk_space_gb) == (8, 100)
    assert (host.retry.max_attempts, host.retry.base_delay_s) == (3, 1.0)
    assert site.resources.max_concurrent_jobs == 10
    assert site.processing.scan_interval_seconds == 60


def test_what_does_not_work_yet_is_refused_with_the_reason(home: Home) -> None:
    said = refusal(home, f"{SPECIFICATION}monitoring: {{metrics_interval_seconds: 30}}\n")
    assert "line 17" in said and "version; leave the section out" in said


def test_relative_folders_lie_in_the_home_and_are_made(home: Home) -> None:
    site = load(home, "paths: {local_logdata: [a, b/c], results: out}")
    site.make_folders()
    assert site.inboxes() == (str(home.folder / "a"), str(home.folder / "b/c"))
    assert all(Path(folder).is_dir() for folder in (*site.inboxes(), site.results_folder()))


def test_a_share_that_is_not_mounted_is_not_made_up(home: Home, tmp_path: Path) -> None:
    site = load(home, f"paths: {{local_logdata: {tmp_path / 'share'}}}")
    with pytest.raises(ConfigurationError, match="not there"):
        site.make_folders()
    assert not (tmp_path / "share").exists()


def test_the_marker_and_the_settling_time_of_the_specification_are_intake_rules(home: Home) -> None:
    site = load(home, "processing: {settle_seconds: 7, ready_marker: null}\nintake: {max_depth: 2}")
    rules = site.intake_rules()
    assert (rules.settle_s, rules.ready_marker, rules.max_depth) == (7, None, 2)
    assert load(home, "intake: {settle_s: 9}").intake_rules().settle_s == 9
    assert "same setting" in refusal(home, "processing: {settle_seconds: 7}\nintake: {settle_s: 9}")
    assert site.case_folders()["inbox"] == site.inboxes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "processing:\n  scan_intervall_seconds: 5\n",
            "line 2: processing.scan_intervall_seconds is no setting; did ",
        ),
        ("proccessing:\n  x: 5\n", "line 1: proccessing is no setting; did you mean processing?"),
        ("\n\napp:\n  name: A\n  name: B\n", "line 5: app.name stands twice (first in line 4)"),
        (
            "resources:\n  max_concurrent_jobs: many\n",
            "line 2: resources.max_concurrent_jobs: input should be",
        ),
        (
            "resources:\n  max_concurrent_jobs: 0\n",
            "line 2: resources.max_concurrent_jobs: input should be greater",
        ),
        ("paths: here\n", "line 1: paths must hold keys of its own"),
        ("paths:\n  results: ''\n", "line 2: paths.results: a folder is needed"),
        ("paths:\n  local_logdata: [a, 5]\n", "line 2: paths.local_logdata"),
        ("paths: [\n", "this is no valid YAML"),
        ("app: \x00\n", "this is no valid YAML"),
        ("app: 2026-99-99\n", "this is no valid YAML"),
        ("app: &x [*x]\n", "this is no valid YAML"),
        ("- a\n- b\n", "line 1: the file must hold sections"),
        ("app: &a {name: x}\nqa: *nowhere\n", "line 2: this is no valid YAML"),
        (
            "paths:\n  remote_workspace: /with blank\n",
            "paths.remote_workspace: workspace '/with blank' must be",
        ),
        ("calibrations: {G3: x.txt}\n", "line 1: calibrations.G3"),
        ("calibrations: {G1: none.txt}\n", "calibration set cannot be read"),
        ("engine: {engine: mouqi}\n", "line 1: engine.engine"),
        ("qa: {gamma_dose_percent: 0}\n", "line 1: qa.gamma_dose_percent"),
        ("42: x\n", "line 1: 42"),
        (
            "retry: {a: 1}\nqa: {tolerance: 1}\n",
            "line 2: qa.tolerance is no setting; did you mean tolerance_percent?",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(home: Home, text: str, said: str) -> None:
    assert said in refusal(home, text)


def test_all_mistakes_are_named_at_once_in_the_order_of_the_file(home: Home) -> None:
    said = refusal(home, "app:\n  nam: x\nprocessing:\n  scan_interval_seconds: 1\nqa:\n  x: 1\n")
    assert said.index("line 2") < said.index("line 4") < said.index("line 6")


def test_the_settings_in_effect_can_be_kept_as_a_settings_file(home: Home) -> None:
    site = load(home, SPECIFICATION)
    again = load(home, describe(site))
    assert again.case_folders() == site.case_folders()
    assert again.host_settings() == site.host_settings()


def test_a_calibration_file_is_checked_and_must_be_that_of_its_room(home: Home) -> None:
    shipped = Path(__file__).parents[2] / "mqi/log/calibrations/G1.txt"
    (home.folder / "mine.txt").write_bytes(shipped.read_bytes())
    texts = load(home, "calibrations: {G1: mine.txt}").calibration_texts()
    assert texts["G1"] == shipped.read_text() and builtin_calibration("G1").name == "G1"
    assert "of room G1, but site.yaml names it for G2" in refusal(home, "calibrations: {G2: mine.txt}")


def test_a_missing_or_unreadable_file_is_a_clear_error(home: Home) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_site_file(home)
    home.site.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_site_file(home)


_KEYS = st.sampled_from(["app", "paths", "name", "results", "processing", "ssh", "qa", "x", "settle_seconds"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet="ab:- \n[]{}&*!|>'\"#,?%@\t0", max_size=40) | _VALUES.map(yaml.safe_dump))
def test_any_file_is_either_read_or_refused_with_a_reason(text: str) -> None:
    try:
        assert isinstance(parse_yaml(text, SiteSettings, name="site.yaml"), SiteSettings)
    except ConfigurationError as error:
        assert "line" in str(error) or "YAML" in str(error)
