"""A question kept in a TOML file, and the recommendation an earlier one got."""

import csv
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path

from planner.assemble import Ask
from planner.catalog.nearest import unknown
from planner.domain.base import InputError

PATHS = ("prices", "previous", "calibration_dir")
"""Keys that name files; relative ones start from the question's folder."""
KEYS = (*Ask.model_fields, "previous", "calibration_dir", "top")
LARGEST_BYTES = 1_000_000


def read_question(path: Path) -> dict[str, object]:
    """The flat keys of a question file, named like the options with underscores.

    Raises:
        InputError: not a readable TOML file, or a key that is not known.
    """
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"{path}: larger than {LARGEST_BYTES // 10**6} MB, no question is")
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from None
    for key in values:
        if key not in KEYS:
            raise InputError(f"{path}: {unknown('key', key, KEYS)}")
    for key in PATHS:
        if isinstance(values.get(key), str):
            values[key] = path.parent / str(values[key])
    if isinstance(values.get("model"), str) and (path.parent / str(values["model"])).exists():
        values["model"] = str(path.parent / str(values["model"]))
    return values


def merged(file: Path | None, options: Mapping[str, object]) -> dict[str, object]:
    """What the file says, with the options of the command line in front."""
    values = read_question(file) if file is not None else {}
    values.update({key: value for key, value in options.items() if value is not None})
    return values


def previous_usd_per_month(path: Path) -> float:
    """The monthly cost of the first row of an earlier recommendation CSV.

    Raises:
        InputError: not readable, no row, no `usd_per_month` column, or no amount in it.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            row = next(csv.DictReader(stream), None)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a recommendation CSV: {error}") from None
    if row is None or "usd_per_month" not in row:
        raise InputError(f"{path}: not a recommendation CSV: no row with a usd_per_month column")
    text = row["usd_per_month"] or ""
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not (math.isfinite(amount) and amount > 0):
        raise InputError(
            f'{path}: usd_per_month of the first row is "{text[:80]}"; an amount above 0 is needed'
        )
    return amount
