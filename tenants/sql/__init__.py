"""SQL that Django cannot say; a file is named after the migration that runs it and never changed once released."""

from pathlib import Path


def sql(name: str) -> str:
    """The text of `name`.sql in this folder."""
    return (Path(__file__).parent / f"{name}.sql").read_text()
