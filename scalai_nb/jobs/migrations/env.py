"Alembic's environment. `jobs.database.connect` hands its own connection; the command `alembic`, as a developer gives it, takes the record of the workspace."
from importlib import import_module
from pkgutil import iter_modules

from alembic import context


def migrate(connection, tables=None):
    context.configure(connection=connection, target_metadata=tables)
    context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None: migrate(given)
else:
    import scalai_nb.jobs
    from scalai_nb.core.settings import Settings
    from scalai_nb.jobs.database import META, database_engine, database_url
    for module in iter_modules(scalai_nb.jobs.__path__): import_module(f"scalai_nb.jobs.{module.name}")  # whichever has tables
    with database_engine(database_url(Settings.load())).begin() as connection: migrate(connection, META)
