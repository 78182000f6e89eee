"""GPUs by name: the catalog's, and those of no catalog whose steps were measured."""

from pathlib import Path

import pytest

from planner.assemble.deployment import Engine, Formats, deployment, gpu_named, parallelism_of
from planner.assemble.fit_runs import fit_gpus
from planner.assemble.known import known_now
from planner.assemble.question import facts_for
from planner.calibrate.store import write_gpu_fit
from planner.catalog.load import find_gpu
from planner.domain.base import InputError
from planner.domain.evidence import Basis
from planner.domain.hardware import Gpu
from planner.domain.plan import Bottleneck
from planner.domain.workload import Workload
from planner.planning.predict import Prediction
from planner.planning.predict_simulated import predict_simulated
from tests.assemble.device_runs import MODEL, RELEASE, device_run, gpu_run
from tests.calibrate.made_gpu import GPU
from tests.calibrate.made_steps import SHEET

NAME, DRIVERS_NAME = "nvidia-x9-80gb", "NVIDIA X9 80GB"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    """With fits of a GPU and of a processor that no catalog has."""
    run = gpu_run()
    sheet = find_gpu(GPU).model_copy(update={"name": NAME, "aliases": (DRIVERS_NAME,)})
    machine = run.machine.model_copy(update={"gpu": NAME, "device_name": DRIVERS_NAME, "datasheet": sheet})
    for one in fit_gpus([run.model_copy(update={"machine": machine}), device_run()], known_now()):
        write_gpu_fit(one.fit, tmp_path)
    return tmp_path


def predicted(gpu: Gpu, folder: Path) -> Prediction:
    """Eight users of the measured model."""
    engine = Engine(max_model_len=8192, engine_version=RELEASE)
    case = deployment(MODEL, gpu, parallelism_of(1), Formats(), engine)
    workload = Workload(input_tokens=512, output_tokens=64, concurrency=8, num_requests=16)
    facts = facts_for(calibration_dir=folder)
    (found,) = predict_simulated([case._replace(workload=workload)], facts)
    return found


def test_a_gpu_of_no_catalog_is_known_from_its_fit(folder: Path) -> None:
    """Its runs take what they took on an H100, so it is predicted as an H100 with the same fit."""
    found = predicted(gpu_named(DRIVERS_NAME, calibration_dir=folder), folder)
    assert gpu_named("nvidia_X9 80GB", calibration_dir=folder).name == NAME
    assert (found.basis, found.gpu) == (Basis.MEASURED, NAME)
    for one in fit_gpus([gpu_run()], known_now()):
        write_gpu_fit(one.fit, folder)
    known = predicted(gpu_named(GPU, calibration_dir=folder), folder)
    assert found.latency is not None
    assert known.latency is not None
    assert found.latency.tpot_mean_s == pytest.approx(known.latency.tpot_mean_s, rel=0.1)
    assert found.memory == known.memory


def test_a_name_of_the_catalog_is_the_catalogs(folder: Path) -> None:
    assert gpu_named("h100", calibration_dir=folder) == find_gpu("h100")
    larger = gpu_named(NAME, 96.0, calibration_dir=folder)
    assert (larger.name, larger.memory_bytes) == (NAME, 96 * 2**30)


def test_without_the_fit_it_is_unknown(folder: Path) -> None:
    with pytest.raises(InputError, match=f'^unknown GPU "{NAME}"'):
        gpu_named(NAME)
    with pytest.raises(InputError, match=r'^unknown GPU "nvidia-y7"'):
        gpu_named("nvidia-y7", calibration_dir=folder)


def test_a_fitted_processor_is_refused_in_words(folder: Path) -> None:
    """How vLLM divides a CPU's memory is not modelled."""
    found = predicted(gpu_named(SHEET.name, calibration_dir=folder), folder)
    assert found.latency is None
    assert found.refusal is not None
    assert found.refusal.bottleneck is Bottleneck.BACKEND
    assert found.refusal.reason == f"{SHEET.name} does not run the vLLM kernels modelled here"
