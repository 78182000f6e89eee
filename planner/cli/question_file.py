"""A question kept in a TOML file, and the recommendation an earlier one got."""

import csv
import io
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from planner.assemble.question import Ask
from planner.catalog.nearest import shown, unknown
from planner.catalog.table import read_text
from planner.domain.base import InputError

PATHS = ("prices", "previous", "calibration_dir")
"""Keys that name files; relative ones start from the question's folder."""
KEYS = (*Ask.model_fields, "previous", "calibration_dir", "method", "top")
SWITCHES = ("include_untrusted",)
LARGEST_BYTES = 1_000_000
LARGEST_EARLIER_BYTES = 20_000_000
LARGEST_NUMBER = 10**18
"""Python does not print a whole number of some thousand digits."""

SURPLUS = "more cells than the header"


def read_question(path: Path) -> dict[str, object]:
    """The flat keys of a question file, named like the options with underscores.

    Raises:
        InputError: not a readable TOML file, a key that is not known, or a path that is empty.
    """
    text = read_text(path, LARGEST_BYTES, "a question")
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from None
    for key, value in values.items():
        if key not in KEYS:
            raise InputError(f"{path}: {unknown('key', key, KEYS)}")
        _check_value(path, key, value)
    for key in PATHS:
        if isinstance(values.get(key), str):
            if not str(values[key]).strip():
                raise InputError(f"{path}: {key} is empty; name a file or folder, or leave it out")
            values[key] = path.parent / str(values[key])
    if isinstance(values.get("model"), str) and _exists(path.parent / str(values["model"])):
        values["model"] = str(path.parent / str(values["model"]))
    return values


def _check_value(path: Path, key: str, value: object) -> None:
    """Refuses what would be taken for something else further on, or cannot be shown."""
    if isinstance(value, bool) and key not in SWITCHES:
        raise InputError(f"{path}: {key} is {str(value).lower()}; only {', '.join(SWITCHES)} may be")
    for part in _leaves(value):
        if isinstance(part, int) and abs(part) > LARGEST_NUMBER:
            raise InputError(f"{path}: {key} is a number of more than {len(str(LARGEST_NUMBER)) - 1} digits")
        if isinstance(part, str) and "\0" in part:
            raise InputError(f"{path}: {key} holds a NUL character")


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


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
    text = read_text(path, LARGEST_EARLIER_BYTES, "a recommendation CSV")
    try:
        row = next(csv.DictReader(io.StringIO(text, newline=""), restkey=SURPLUS), None)
    except csv.Error as error:
        raise InputError(f"{path}: not a recommendation CSV: {error}") from None
    if row is None or "usd_per_month" not in row:
        raise InputError(f"{path}: not a recommendation CSV: no row with a usd_per_month column")
    if SURPLUS in row:
        raise InputError(
            f"{path}: the first row has more cells than the header; an amount with a comma needs quotation marks"
        )
    cell = row["usd_per_month"] or ""
    try:
        amount = math.nan if "_" in cell else float(cell)
    except ValueError:
        amount = math.nan
    if not (math.isfinite(amount) and amount > 0):
        raise InputError(
            f'{path}: usd_per_month of the first row is "{shown(cell)}"; an amount above 0 is needed'
        )
    return amount
