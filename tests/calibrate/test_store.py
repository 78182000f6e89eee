"""Coefficients on disk: whole or not at all, first directory first, broken files told, siblings labelled."""

import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from planner.calibrate.fit_steps import fit_steps, region_errors
from planner.calibrate.store import (
    calibration_directories,
    gpu_fit,
    gpu_fits,
    operators_for,
    operators_path,
    read_accuracy,
    read_coefficients,
    write_coefficients,
    write_gpu_fit,
)
from planner.catalog.load import find_gpu
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.base import InputError
from planner.domain.calibration import StepShape
from planner.domain.evidence import Accuracy, Basis, ErrorBand, LatencyError
from planner.formulas.gpu_fit import GpuFit
from tests.calibrate import made_steps

SHIPPED = shipped_calibration_dir()
H100 = "H100-SXM-80GB"
MAX_FILE_BYTES = 220_000
"""Nearly all of it surfaces of linear layers: 14 x 19 x 19 values a format."""


def shipped(name: str = H100) -> Path:
    return operators_path(SHIPPED, name)


@pytest.mark.parametrize("path", sorted((SHIPPED / "operators").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_files_are_small_complete_and_come_from_tables(path: Path) -> None:
    found = read_coefficients(path)
    assert found.gpu == path.stem == find_gpu(path.stem).name
    assert path.stat().st_size < MAX_FILE_BYTES
    assert found.tables
    assert all(not source.path.startswith(("/", "..")) for source in found.tables)


def test_round_trip(tmp_path: Path) -> None:
    original = read_coefficients(shipped())
    path = write_coefficients(original, tmp_path)
    assert path == operators_path(tmp_path, H100)
    assert read_coefficients(path) == original
    assert path.read_bytes() == shipped().read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coefficients = read_coefficients(shipped())
    path = write_coefficients(coefficients, tmp_path)
    before = path.read_bytes()

    def full_disk(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        write_coefficients(coefficients.model_copy(update={"fitted_on": "2000-01-01"}), tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Whatever would make a file longer fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def fit() -> GpuFit:
    """Of a device whose factors were found."""
    one = made_steps.deployment()
    shapes = [StepShape(decodes=batch, context_tokens=64) for batch in range(1, 13)]
    found = fit_steps([made_steps.measured(one, shapes)])
    return GpuFit(
        gpu=made_steps.SHEET,
        in_catalog=False,
        plain=True,
        engine_version=one.engine_version,
        fitted_on="2026-01-01",
        scales=found.scales,
        host=found.host,
        parameters=found.parameters,
        deployments=(),
        regions=region_errors([made_steps.measured(one, shapes)], found),
        runs=(),
        left_out_median_ratio=0.02,
        noise_ratio=0.01,
    )


def test_a_fit_goes_round_and_the_first_directory_wins(fit: GpuFit, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    older = fit.model_copy(update={"fitted_on": "2001-02-03"})
    assert write_gpu_fit(fit, mine) == mine / "gpus" / f"{fit.gpu.name}.json"
    write_gpu_fit(older, theirs)
    assert gpu_fits((tmp_path / "absent", mine, theirs)) == (fit,)
    assert gpu_fit(fit.gpu.name, (theirs, mine)) == older
    assert gpu_fit("another", (mine, theirs)) is None


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_disk_that_fills_up_half_way_leaves_the_old_fit_whole(
    fit: GpuFit, tmp_path: Path, share: float
) -> None:
    path = write_gpu_fit(fit, tmp_path)
    before = path.read_bytes()
    longer = fit.model_copy(update={"parameters": fit.parameters * 20})
    size_bytes = len(write_gpu_fit(longer, tmp_path / "room").read_bytes())
    with (
        files_of_at_most(int(share * size_bytes)),
        pytest.raises(InputError, match="File too large") as caught,
    ):
        write_gpu_fit(longer, tmp_path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert gpu_fit(fit.gpu.name, (tmp_path,)) == fit
    write_gpu_fit(longer, tmp_path)
    assert gpu_fit(fit.gpu.name, (tmp_path,)) == longer


def test_an_unwritable_directory_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        write_coefficients(read_coefficients(shipped()), blocked)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"\xff\xfe\x00", "Invalid JSON"),
        (b"[]", "make it anew with `fit operators DIR`"),
        (b'{"gpu": "H100-SXM-80GB"}', "fitted_on: Field required"),
    ],
)
def test_a_broken_file_is_one_line_of_input_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = operators_path(tmp_path, H100)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        operators_for(find_gpu(H100), (tmp_path,))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_negative_efficiency_and_an_older_format_are_refused(tmp_path: Path) -> None:
    coefficients = read_coefficients(shipped())
    fit = coefficients.mla.model_copy(update={"bmm_flop_efficiency": -1.0})
    path = write_coefficients(coefficients.model_copy(update={"mla": fit}), tmp_path)
    with pytest.raises(InputError, match="bmm_flop_efficiency"):
        read_coefficients(path)
    path = write_coefficients(coefficients.model_copy(update={"format": 0}), tmp_path / "older")
    with pytest.raises(InputError, match="has format 0"):
        read_coefficients(path)


@pytest.mark.parametrize(
    ("field", "number"),
    [("bmm_constant_s", "1e300"), ("bmm_constant_s", "9" * 400), ("bmm_flop_efficiency", "1e-300")],
)
def test_a_damaged_number_is_refused_when_it_is_read(tmp_path: Path, field: str, number: str) -> None:
    path = write_coefficients(read_coefficients(shipped()), tmp_path)
    path.write_text(re.sub(rf'"{field}": [^,]+', f'"{field}": {number}', path.read_text()))
    with pytest.raises(InputError, match=rf"mla\.{field}: ") as caught:
        read_coefficients(path)
    assert "\n" not in str(caught.value)


def test_own_coefficients_win_and_the_first_directory_first(tmp_path: Path) -> None:
    mine = read_coefficients(shipped()).model_copy(update={"fitted_on": "2001-02-03"})
    write_coefficients(mine, tmp_path)
    assert operators_for(find_gpu(H100), (tmp_path, SHIPPED)).coefficients.fitted_on == "2001-02-03"
    assert operators_for(find_gpu(H100), (SHIPPED, tmp_path)).coefficients.fitted_on != "2001-02-03"
    assert operators_for(find_gpu("H20"), (tmp_path, SHIPPED)).coefficients.fitted_on == "2001-02-03"
    write_coefficients(mine.model_copy(update={"gpu": "H20"}), tmp_path)
    own = operators_for(find_gpu("H20"), (tmp_path, SHIPPED))
    assert (own.basis, own.donor) == (Basis.OPERATORS, "H20")


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    coefficients = read_coefficients(shipped())
    for date in ("2001-01-01", "2002-02-02"):
        path = write_coefficients(coefficients.model_copy(update={"fitted_on": date}), tmp_path)
        assert read_coefficients(path).fitted_on == date


def test_no_coefficients_anywhere_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no operator coefficients for T4 or A100-SXM-80GB"):
        operators_for(find_gpu("T4"), (tmp_path,))
    with pytest.raises(InputError, match="cannot be read"):
        read_coefficients(tmp_path / "absent.json")


def test_directories_in_order_and_once(tmp_path: Path) -> None:
    assert calibration_directories(tmp_path)[0] == tmp_path
    assert calibration_directories(SHIPPED)[0] == SHIPPED
    assert len(set(calibration_directories(SHIPPED))) == len(calibration_directories(SHIPPED))
    assert calibration_directories()[-1] == SHIPPED


def test_accuracy_is_read_from_the_first_directory_that_has_it(tmp_path: Path) -> None:
    assert read_accuracy((tmp_path,)).bands == ()
    band = ErrorBand(
        basis=Basis.OPERATORS,
        tpot=LatencyError(median_error_ratio=0.1, factor=1.2, half_width_ratio=0.18),
        ttft=LatencyError(median_error_ratio=0.2, factor=1.5, half_width_ratio=0.4),
        runs=3,
        note="made up",
    )
    known = Accuracy(source="a test", fitted_on="2001-01-01", bands=(band,))
    (tmp_path / "accuracy.json").write_text(known.model_dump_json())
    assert read_accuracy((tmp_path / "absent", tmp_path)) == known
    (tmp_path / "accuracy.json").write_text("{}")
    with pytest.raises(InputError, match="fit errors"):
        read_accuracy((tmp_path,))


def test_shipped_directory_copied_elsewhere_answers_the_same(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "operators", tmp_path / "operators")
    gpu = find_gpu("A100-SXM-80GB")
    assert operators_for(gpu, (tmp_path,)) == operators_for(gpu, (SHIPPED,))


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", forbidden)
    said = f"calibration folder {tmp_path}.* cannot be read: Permission denied"
    with pytest.raises(InputError, match=said):
        operators_for(find_gpu(H100), (tmp_path,))
    with pytest.raises(InputError, match=said):
        read_accuracy((tmp_path,))


def test_a_folder_in_place_of_coefficients_is_not_passed_over(tmp_path: Path) -> None:
    path = operators_path(tmp_path, H100)
    path.mkdir(parents=True)
    with pytest.raises(InputError, match=re.escape(f"{path} is not a file")):
        operators_for(find_gpu(H100), (tmp_path, SHIPPED))


@pytest.mark.parametrize("gpu", ["L40S", "L4"])
def test_coefficients_under_another_name_are_refused(tmp_path: Path, gpu: str) -> None:
    """L4 takes those of L40S."""
    path = operators_path(tmp_path, "L40S")
    path.parent.mkdir()
    shutil.copy(shipped(), path)
    said = f"{path}: has the coefficients of {H100}, not of L40S; make it anew with"
    with pytest.raises(InputError, match=re.escape(said)):
        operators_for(find_gpu(gpu), (tmp_path, SHIPPED))
