"""MLflow's database before the server starts: is it there, MLflow's own, and of this version."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import sqlalchemy
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from trainers.errors import ConfigError
from tuning.security.redaction import check_driver, redact

_CONNECT_SECONDS = 10


def check_database(uri: str, *, may_upgrade: bool = False) -> bool:
    """Whether the database must be upgraded; an empty one need not be, for MLflow fills it.

    Args:
        uri: of a database.
        may_upgrade: the user agrees to it.

    Raises:
        ConfigError: it cannot be reached, holds something else, or is older and may not be changed.
    """
    check_driver("MLFLOW_BACKEND_STORE_URI", uri)
    revision, is_empty = _revision(uri)
    if revision is None and is_empty:
        return False
    revisions = _mlflow_revisions()
    if revision == revisions[0]:
        return False
    where = redact(uri)
    if revision not in revisions:
        raise ConfigError(
            f"{where} is no database of this MLflow: it holds the tables of another program, such "
            "as Optuna, or of a newer MLflow; give MLflow a database of its own"
        )
    if not may_upgrade:
        raise ConfigError(
            f"{where} was made by an older MLflow; make a backup, stop its other servers, and "
            "start this one with --upgrade"
        )
    return True


def upgrade_database(uri: str) -> None:
    """What `mlflow db upgrade` does, in this process: on a command line, all could read the URL."""
    from mlflow.db import commands

    commands.main(["upgrade", uri], standalone_mode=False)


def _revision(uri: str) -> tuple[str | None, bool]:
    """The schema's revision, None where nothing says it; and whether there are no tables."""
    is_postgresql = uri.startswith("postgresql")
    limit = {"connect_timeout": _CONNECT_SECONDS} if is_postgresql else {}
    engine = sqlalchemy.create_engine(uri, connect_args=limit, poolclass=sqlalchemy.NullPool)
    try:
        with engine.connect() as connection:
            tables = sqlalchemy.inspect(connection).get_table_names()
            return MigrationContext.configure(connection).get_current_revision(), not tables
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = redact(str(error), uri).strip().splitlines()[0]
        raise ConfigError(f"{redact(uri)} cannot be used: {reason[:300]}") from None


def _mlflow_revisions() -> list[str]:
    """Of the installed MLflow, the newest first."""
    package = importlib.util.find_spec("mlflow")
    assert package is not None
    assert package.origin is not None
    scripts = ScriptDirectory(str(Path(package.origin).parent / "store" / "db_migrations"))
    return [script.revision for script in scripts.walk_revisions()]
