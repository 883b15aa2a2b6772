"""Where a configuration's pictures lie: a folder, or the embedded benchmark, built when needed."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from trainers.errors import ConfigError

EMBEDDED = "openmoji"


def resolve_root(root: str, *, progress: bool = False) -> Path:
    """The folder that `data.root` names.

    Args:
        root: a path, or `openmoji` for the embedded benchmark, which is built in the user's cache
            folder if it is not there yet.
        progress: show a bar while it is built.

    Raises:
        ConfigError: the embedded benchmark is wanted, but its packages are not installed.
    """
    if root != EMBEDDED:
        return Path(root).expanduser()
    try:
        from trainers.data.openmoji.build import build
        from trainers.data.openmoji.contact_sheet import contact_sheet
    except ImportError as error:
        raise ConfigError(
            f"data.root = {EMBEDDED!r}: the embedded benchmark needs {error.name!r}; "
            "install it with: pip install 'lipsum-tune[benchmark]'"
        ) from error
    folder = build(platformdirs.user_cache_path("lipsum-tune") / EMBEDDED, progress=progress)
    sheet = folder.with_name(f"{EMBEDDED}-contact-sheet.png")
    if not sheet.exists():
        contact_sheet(folder, sheet)
    return folder
