"""What predictions rest on: ratios of serving runs and curves of measured steps, the user's fits before others."""

from pathlib import Path

from planner.assemble.fit_runs import fit_gpus
from planner.assemble.known import known_now
from planner.assemble.question import facts_for
from planner.calibrate.store import calibration_directories, write_gpu_fit
from planner.catalog.serving import read_serving
from tests.assemble.device_runs import device_run, gpu_run


def test_without_fits_it_is_what_serving_runs_said(tmp_path: Path) -> None:
    serving = read_serving(None)
    assert known_now() == known_now(tmp_path)._replace(directories=calibration_directories())
    assert known_now() == (calibration_directories(), serving.host, serving.tuning, ())


def test_fits_come_beside_serving_runs_and_predictions_rest_on_both(tmp_path: Path) -> None:
    fits = [one.fit for one in fit_gpus([gpu_run(), device_run()], known_now())]
    for fit in fits:
        write_gpu_fit(fit, tmp_path)
    serving, found = read_serving(None), known_now(tmp_path)
    assert found.directories == calibration_directories(tmp_path)
    assert found.fits == tuple(fits)
    measured = tuple(one for fit in fits for one in fit.deployments)
    assert len(measured) == 2
    assert found.tuning == serving.tuning.model_copy(
        update={"deployments": (*serving.tuning.deployments, *measured)}
    )
    facts = facts_for(calibration_dir=tmp_path)
    assert (facts.host, facts.tuning) == (found.host, found.tuning)
    assert set(facts.accuracy.of_gpus) == {fit.gpu.name for fit in fits}
