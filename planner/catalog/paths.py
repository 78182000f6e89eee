"""Where facts, shipped coefficients and the user's own coefficients lie, in a checkout and in a wheel."""

import os
import sys
from pathlib import Path

APPLICATION = "llm-serving-planner"
PACKAGE = Path(__file__).resolve().parent.parent


def _root(package: Path = PACKAGE) -> Path:
    """What holds `data/`, `calibration/` and `app.py`: a folder of the wheel's package, else the checkout."""
    bundled = package / "_bundled"
    return bundled if bundled.is_dir() else package.parent


def _is_checkout(package: Path = PACKAGE) -> bool:
    return not (package / "_bundled").is_dir() and (package.parent / "pyproject.toml").is_file()


def data_dir() -> Path:
    """Folder of the committed facts (`gpus.csv`, `instances.csv`, `prices.csv`, `models/`, `presets/`)."""
    return _root() / "data"


def shipped_calibration_dir() -> Path:
    """Folder of the coefficients that come with the program."""
    return _root() / "calibration"


def user_calibration_dir() -> Path | None:
    """Folder of the user's own coefficients, by the platform's convention; it need not exist.

    None where there is no home directory, or the folder is one that this process may not enter.
    `XDG_DATA_HOME` (XDG base directory specification) wins where it is an absolute path; else
    `LOCALAPPDATA` on Windows, `~/Library/Application Support` on macOS, `~/.local/share` elsewhere.
    """
    home = _user_data_home()
    if home is None:
        return None
    folder = home / APPLICATION / "calibration"
    return folder if _may_be_entered(folder) else None


def default_calibration_dir() -> Path | None:
    """Where a fit is written unless told otherwise: the checkout's `calibration/`, else the user's folder."""
    return shipped_calibration_dir() if _is_checkout() else user_calibration_dir()


def app_path() -> Path:
    """The Streamlit entry script."""
    return _root() / "app.py"


def _user_data_home() -> Path | None:
    xdg = Path(os.environ.get("XDG_DATA_HOME", ""))
    if xdg.is_absolute():
        return xdg
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    try:
        home = Path.home()
    except RuntimeError:
        # No HOME, and a user id that has no entry in the password file, as containers give out.
        return None
    if sys.platform == "win32":
        return home / "AppData" / "Local"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support"
    return home / ".local" / "share"


def _may_be_entered(folder: Path) -> bool:
    """False where the system forbids even to look; a folder that is not there yet may be made."""
    try:
        folder.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return os.access(folder, os.R_OK | os.X_OK)
