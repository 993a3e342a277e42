"""Where a machine's data is, when nobody says otherwise. Apart, because the launcher reads it before any package."""

DATA_DIR_VARIABLE = "TURNPIKE_DATA_DIR"
DEFAULT_DATA_DIR = "~/.local/share/turnpike"
DATABASE_URL_VARIABLE = "TURNPIKE_DATABASE_URL"
