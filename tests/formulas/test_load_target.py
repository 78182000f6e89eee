"""What a GPU and a release bring with them."""

import pytest

from planner.catalog.load import find_gpu
from planner.domain.base import InputError
from planner.formulas.load_target import load_target


def test_a_gpu_and_a_release() -> None:
    target = load_target(find_gpu("H100-SXM-80GB"), "v0.11.2")
    assert target.capability == (9, 0)
    assert target.is_hopper
    assert target.has_fp8
    assert target.has_flashinfer
    assert target.has_deep_gemm
    # The server's default on a card of 70 GiB and more.
    assert target.batched_tokens == 8192
    assert load_target(find_gpu("H100-SXM-80GB"), "0.11.2", 512).batched_tokens == 512


@pytest.mark.parametrize(
    ("gpu", "blackwell", "datacenter", "fp8"),
    [
        ("A100-SXM-80GB", False, False, False),
        ("L40S", False, False, True),
        ("B200", True, True, True),
        ("B300", True, True, True),
        ("RTX PRO 6000", True, False, True),
    ],
)
def test_generations(gpu: str, *, blackwell: bool, datacenter: bool, fp8: bool) -> None:
    target = load_target(find_gpu(gpu))
    assert (target.is_blackwell, target.is_datacenter_blackwell, target.has_fp8) == (
        blackwell,
        datacenter,
        fp8,
    )
    assert target.has_deep_gemm is datacenter
    assert find_gpu(gpu).is_datacenter_blackwell is datacenter


def test_b300_came_with_0_13() -> None:
    b200, old, new = (
        load_target(find_gpu(g), v) for g, v in (("B200", "0.12.0"), ("B300", "0.12.0"), ("B300", "0.13.0"))
    )
    assert (b200.is_b200, old.is_b200) == (True, False)
    assert (b200.has_deep_gemm, old.has_deep_gemm, new.has_deep_gemm) == (True, False, True)


def test_amd_has_no_capability() -> None:
    target = load_target(find_gpu("MI300X"))
    assert target.capability == (0, 0)
    assert not target.is_cuda
    assert not target.has_flashinfer


def test_a_plain_install_brought_no_flashinfer_before() -> None:
    assert not load_target(find_gpu("B200"), "0.11.0").has_flashinfer
    assert load_target(find_gpu("B200"), "0.11.1").has_flashinfer


def test_a_word_is_no_version() -> None:
    with pytest.raises(InputError, match="engine_version 'newest'"):
        load_target(find_gpu("B200"), "newest")
