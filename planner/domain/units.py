"""Constants and conversions. Inside the program everything is SI base units and bytes; human units live here."""

KIB_BYTES = 2**10
MIB_BYTES = 2**20
GIB_BYTES = 2**30
GB_BYTES = 10**9
TERA = 10**12
HOURS_PER_MONTH = 730.0
MONTHS_PER_YEAR = 12
SECONDS_PER_HOUR = 3600.0
MILLION = 1_000_000


def bytes_to_gib(size_bytes: float) -> float:
    """Bytes to GiB (2^30).

    >>> bytes_to_gib(16_060_522_496)
    14.957527160644531
    """
    return size_bytes / GIB_BYTES


def gib_to_bytes(size_gib: float) -> int:
    """GiB (2^30) to whole bytes.

    >>> gib_to_bytes(79.19)
    85029615043
    """
    return round(size_gib * GIB_BYTES)


def gb_to_bytes(size_gb: float) -> float:
    """GB (10^9) to bytes; GB/s to bytes/s alike.

    >>> gb_to_bytes(3350)
    3350000000000.0
    """
    return size_gb * float(GB_BYTES)


def tflop_to_flop(tflop: float) -> float:
    """TFLOP (10^12) to FLOP; TFLOP/s to FLOP/s alike.

    >>> tflop_to_flop(989.4)
    989400000000000.0
    """
    return tflop * TERA


def seconds_to_ms(time_s: float) -> float:
    """Seconds to milliseconds."""
    return time_s * 1e3


def ms_to_seconds(time_ms: float) -> float:
    """Milliseconds to seconds."""
    return time_ms / 1e3
