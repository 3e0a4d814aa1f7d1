"""SQL that Django cannot say: partitions, triggers and the money functions. A file is named after the migration that runs
it and is never changed once released; a change is a new file in a new migration.
"""

from pathlib import Path


def sql(name: str) -> str:
    """The text of `name`.sql in this folder."""
    return (Path(__file__).parent / f"{name}.sql").read_text()
