"""`python -m planner.calibrate.report [DIR]`: the fit errors of stored coefficients as a Markdown table."""

import sys
from collections.abc import Sequence
from pathlib import Path

from planner.calibrate.operators import FitRow, fit_report
from planner.calibrate.store import OPERATORS_FOLDER, read_coefficients
from planner.catalog.paths import shipped_calibration_dir
from planner.domain.base import InputError


def _cell(row: FitRow | None) -> str:
    """Held-out median and 90th percentile in percent, in sample (marked *) where too few shapes were timed."""
    if row is None:
        return ""
    if row.median_ratio is None or row.p90_ratio is None:
        return row.origin
    if row.held_out_median_ratio is None or row.held_out_p90_ratio is None:
        return f"{row.median_ratio:.1%} / {row.p90_ratio:.0%} *"
    return f"{row.held_out_median_ratio:.1%} / {row.held_out_p90_ratio:.0%}"


def error_table(rows: Sequence[FitRow]) -> str:
    """Markdown: a line per operator and variant, a column per GPU."""
    gpus = list(dict.fromkeys(row.gpu for row in rows))
    found = {(row.operator, row.variant, row.gpu): row for row in rows}
    lines = [
        f"| operator | variant | {' | '.join(gpus)} |",
        f"|---|---|{'---|' * len(gpus)}",
    ]
    for operator, variant in sorted({(row.operator, row.variant) for row in rows}):
        cells = [_cell(found.get((operator, variant, gpu))) for gpu in gpus]
        lines.append(f"| {operator} | {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Prints the table of every coefficient file in a calibration directory; 2 where there is none."""
    directory = Path(arguments[0]) if arguments else shipped_calibration_dir()
    paths = sorted((directory / OPERATORS_FOLDER).glob("*.json"))
    try:
        if not paths:
            raise InputError(f"{directory / OPERATORS_FOLDER}: holds no coefficients")
        print(error_table(fit_report([read_coefficients(path) for path in paths])))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
