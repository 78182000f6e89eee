"""A fit that is written while the dashboard is open."""

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from planner.assemble.fit_runs import fit_gpus
from planner.assemble.known import known_now
from planner.calibrate.store import gpu_fit_path, write_gpu_fit
from tests.calibrate.made_gpu import GPU
from tests.ui.made_calibration import MODEL, made_run

Page = Callable[..., AppTest]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's calibration folder, not there yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "llm-serving-planner" / "calibration"


@pytest.mark.parametrize("view", ["size", "memory", "calibration"])
def test_a_broken_fit_of_the_user_is_one_line_on_every_page(page: Page, mine: Path, view: str) -> None:
    broken = gpu_fit_path(mine, GPU)
    broken.parent.mkdir(parents=True)
    broken.write_text("{}")
    app = page(view)
    assert not app.exception
    lines = {one.value.replace("\\", "") for one in (*app.error, *app.warning)}
    assert len(lines) == 1
    assert f"{GPU}.json: gpu: Field required" in lines.pop()


def test_a_new_fit_is_used_at_the_next_click_and_no_longer_once_it_is_gone(page: Page, mine: Path) -> None:
    def step() -> str:
        app = page("step", model=MODEL, memory_tp="1", step_batch="64", step_context_tokens="4000")
        assert not app.exception
        assert not app.error
        return str({one.label: one.value for one in app.metric}["Step"])

    by_tables = step()
    (one,) = fit_gpus([made_run()], known_now())
    write_gpu_fit(one.fit, mine)
    assert step() != by_tables
    gpu_fit_path(mine, GPU).unlink()
    assert step() == by_tables
