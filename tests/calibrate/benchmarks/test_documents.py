"""Files that are no results, or hardly: one line says why, and nothing else happens."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibrate.benchmarks import documents
from planner.calibrate.benchmarks.complete import Given, benchmark_runs
from planner.calibrate.benchmarks.documents import read_documents
from planner.calibrate.benchmarks.read import read_benchmarks
from planner.domain.base import InputError
from planner.domain.benchmark import BenchmarkFacts, BenchmarkRun
from tests.calibrate.benchmarks.made import guidellm_02, stage, stored

TEXTS = {
    "empty": ("", "empty"),
    "blank": (" \n\t ", "empty"),
    "words": ("Throughput: 3.2 requests/s", "not whole JSON"),
    "cut": ('{"duration": 1.0, "comple', "not whole JSON"),
    "two, the second cut": ('{"a": 1}\n{"b":', "not whole JSON"),
    "list of nothing": ("[]", "an empty list"),
    "a number": ("42", "not an object"),
    "a list of numbers": ("[1, 2]", "not an object"),
    "another object": ('{"hello": "world"}', "not a result of vllm bench serve"),
    "deep lists": ("[" * 200_000 + "]" * 200_000, "nested too deeply"),
    "deep objects": ('{"a":' * 200_000 + "1" + "}" * 200_000, "nested too deeply"),
    "a long figure": ("1" * 5_000, "not whole JSON"),
    "PyTorch": ('[{"benchmark": {}, "model": {}, "metric": {}}]', "without .pytorch in its name"),
    "a calibration": ('{"run_id": "a", "target": {}, "points": []}', "a calibration run"),
    "a record": ('{"kind": "benchmark"}', "imported already"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_result_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    text, words = TEXTS[name]
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_benchmarks(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_folders_devices_bytes_and_absent_files_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\x93NUMPY\x00\xff")
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path, words in (
        (tmp_path, "a folder"),
        (tmp_path / "absent.json", "cannot be read"),
        (binary, "UTF-8"),
        (pipe, "not a plain file"),
        (Path("/dev/zero"), "not a plain file"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(InputError) as caught:
            read_documents(path)
        assert str(caught.value).startswith(
            f"{path}: {words}" if words != "UTF-8" else f"{path}: not a text in UTF-8"
        )


def test_a_file_too_large_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as stream:
        stream.truncate(documents.LARGEST_BYTES + 1)
    with pytest.raises(InputError, match="larger than 512 MiB"):
        read_documents(path)


def test_references_in_yaml_cannot_unfold_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MOST_NODES", 1_000)
    path = tmp_path / "bomb.yaml"
    path.write_text(
        "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 12))])
    )
    with pytest.raises(InputError, match="more than 1,000 values"):
        read_documents(path)


def test_yaml_with_days_and_numbers_as_keys_is_read_as_json(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("day: 2026-10-01\n1: two\nrate: .inf\n")
    assert read_documents(path).documents == ({"day": "2026-10-01", "1": "two", "rate": "Infinity"},)


def test_half_a_character_becomes_a_question_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(r'{"a": "\ud800", "b": "\ud83d\ude00"}')
    assert read_documents(path).documents == ({"a": "?", "b": "\U0001f600"},)


KINDS = {
    "closed": stored("serve_closed.json"),
    "detailed": stored("serve_open_detailed.json"),
    "latency": stored("latency.json"),
    "throughput": stored("throughput.json"),
    "guidellm 0.8": stored("guidellm_concurrent.json"),
    "guidellm 0.2": guidellm_02({"type_": "poisson", "rate": 2.0}),
    "inference-perf": stage(requested_rate=2.0),
}
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.just([]),
    st.just({}),
    st.lists(st.integers(), max_size=3),
)


def _paths(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in _paths(item, (*path, key)))][bool(not path) :]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_field_it_is_read_or_refused(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A record that is made can be written, read again and put in a runs table."""
    document = json.loads(json.dumps(KINDS[kind]))
    path = data.draw(st.sampled_from(_paths(document)))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = data.draw(ANYTHING)
    file = tmp_path_factory.mktemp("fuzz") / "stage_0_lifecycle_metrics.json"
    file.write_text(json.dumps(document))
    runs: tuple[BenchmarkRun, ...] = ()
    with contextlib.suppress(InputError):
        runs = benchmark_runs(read_benchmarks(file), Given(BenchmarkFacts(model="m", gpu="L4", tp=1)))
    for run in runs:
        assert BenchmarkRun.model_validate_json(run.model_dump_json()) == run
        assert run.as_runs_row()["run_id"] == run.run_id
