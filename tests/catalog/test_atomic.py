"""Output files are there whole or not at all."""

import os
from pathlib import Path

import pytest

from planner.catalog.atomic import atomic_text, check_outputs, check_writable, write_text, write_texts
from planner.domain.base import InputError


def test_a_file_is_replaced_whole_and_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    path.chmod(0o640)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_rights_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "out.csv", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "out.csv").stat().st_mode & 0o777 == 0o640


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_text(path) as stream:
        stream.writelines(str(1 // left) for left in (1, 0))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


@pytest.mark.parametrize("name", ["", "missing/out.csv", "x" * 300 + ".csv"])
def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot write"), atomic_text(tmp_path / name) as stream:
        stream.write("x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_write_permission_is_refused_before_the_work(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied"):
        check_writable(tmp_path / "out.csv")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full on this system")
def test_a_full_device_is_refused_and_stays_a_device() -> None:
    with pytest.raises(InputError, match="No space left"):
        write_text(Path("/dev/full"), "x" * 100_000)
    assert Path("/dev/full").is_char_device()


def test_links_in_a_circle_are_refused_in_one_line(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.symlink_to(other)
    other.symlink_to(one)
    for write in (check_writable, check_outputs, lambda path: write_text(path, "x")):
        with pytest.raises(InputError, match=r"one\.csv: its symbolic links form a loop"):
            write(one)
    assert one.is_symlink()


def test_an_output_that_is_an_input_is_refused_however_it_is_spelt(tmp_path: Path) -> None:
    read, link = tmp_path / "in.csv", tmp_path / "link.csv"
    read.write_text("mine")
    link.symlink_to(read)
    for path in (read, link, tmp_path / "." / "in.csv"):
        with pytest.raises(InputError, match="this command reads it"):
            check_outputs(path, inputs=(None, read))
    check_outputs(tmp_path / "out.csv", None, inputs=(None, read, tmp_path / "not-there.csv"))
    check_outputs(Path(os.devnull), inputs=(Path(os.devnull),))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full on this system")
@pytest.mark.parametrize("full_first", [True, False])
def test_of_several_files_none_is_replaced_where_one_cannot_be_written(
    tmp_path: Path, full_first: bool
) -> None:
    kept, full = tmp_path / "kept.csv", Path("/dev/full")
    kept.write_text("old")
    texts = {full: "new", kept: "new"} if full_first else {kept: "new", full: "new"}
    with pytest.raises(InputError, match="cannot write /dev/full: No space left"):
        write_texts(texts)
    assert kept.read_text() == "old"
    assert list(tmp_path.iterdir()) == [kept]


def test_several_files_are_all_written(tmp_path: Path) -> None:
    write_texts({tmp_path / "a": "one", tmp_path / "b": "two"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "one", "b": "two"}
