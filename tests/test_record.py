"The record's schema: made, taken over, brought forward and refused, the same on SQLite and on PostgreSQL."
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pkgutil import iter_modules

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from conftest import scalai
from servers import Postgres

import scalai_nb.jobs
from scalai_nb.core.errors import BadRequest
from scalai_nb.core.settings import Settings
from scalai_nb.jobs import database as module
from scalai_nb.jobs.database import META, connect, newest_migration
from scalai_nb.jobs.job_run import JobRun
from scalai_nb.jobs.record import Record

OLD = """
CREATE TABLE runs (id VARCHAR(40) NOT NULL, name TEXT, kind VARCHAR(16), state VARCHAR(16), notebook TEXT, output TEXT,
    parameters JSON, results JSON, error JSON, reason TEXT, parent VARCHAR(40), key VARCHAR(64), created FLOAT,
    started FLOAT, seconds FLOAT, cell INTEGER, cells INTEGER, peak_memory BIGINT, reads JSON, writes JSON, host TEXT,
    process TEXT,
    versions JSON, "commit" TEXT, cancel BOOLEAN, PRIMARY KEY (id));
CREATE INDEX ix_runs_name ON runs (name);
CREATE INDEX ix_runs_state ON runs (state);
CREATE INDEX ix_runs_parent ON runs (parent);
CREATE INDEX ix_runs_key ON runs ("key");
CREATE INDEX ix_runs_created ON runs (created);
CREATE TABLE events (run VARCHAR(40), at FLOAT, state VARCHAR(16), detail TEXT);
CREATE INDEX ix_events_run ON events (run);
CREATE TABLE timings (run VARCHAR(40), cell INTEGER, seconds FLOAT);
CREATE INDEX ix_timings_run ON timings (run);
INSERT INTO runs (id, name, kind, state, notebook, parameters, results, reason, created, seconds, reads, writes, host,
                  process, versions)
    VALUES ('20260101-000000-abcdef', 'old', 'notebook', 'succeeded', 'old.ipynb', '{"n": 1}', '{}', '', 1, 2.5, '[]',
            '[]', 'h', 'p', '{}');
INSERT INTO events VALUES ('20260101-000000-abcdef', 2.0, 'running', ''),
    ('20260101-000000-abcdef', 1.0, 'queued', ''), ('20260101-000000-abcdef', 3.0, 'succeeded', '');
"""
NEXT = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "9998", {before!r}
def upgrade(): op.create_table("more", sa.Column("x", sa.Integer))
"""


@pytest.fixture(scope="module")
def postgres():
    with Postgres() as server: yield server


def differences(engine) -> list:
    "What the tables are, beside what the code says they are."
    for m in iter_modules(scalai_nb.jobs.__path__): import_module(f"scalai_nb.jobs.{m.name}")
    with engine.connect() as db: return compare_metadata(MigrationContext.configure(db), META)


def made(script: str, path) -> str:
    with sqlite3.connect(path) as db: db.executescript(script)
    db.close()
    return f"sqlite:///{path}"


def brought_forward(url: str, tmp_path, monkeypatch):
    "A release with one more table comes; eight open the same record at that moment."
    connect.__wrapped__(url).dispose()
    later = shutil.copytree(module.MIGRATIONS, tmp_path/"migrations", ignore=shutil.ignore_patterns("__pycache__"))
    (later/"versions/9998_more.py").write_text(NEXT.format(before=newest_migration()))
    monkeypatch.setattr(module, "MIGRATIONS", later)
    with ThreadPoolExecutor(8) as pool: engines = list(pool.map(lambda _: connect.__wrapped__(url), range(8)))
    assert all("more" in sa.inspect(e).get_table_names() for e in engines)
    for e in engines: e.dispose()


def test_migrations_make_the_tables_of_the_code(tmp_path):
    assert differences(connect.__wrapped__(f"sqlite:///{tmp_path}/a.db")) == []


def test_a_record_from_before_migrations_is_taken_over(workspace):
    (workspace/".scalai").mkdir()
    made(OLD, workspace/".scalai/scalai.db")
    record = Record(Settings.load())
    assert differences(record.engine) == []
    assert (record.get("last").name, record.get("last").parameters) == ("old", dict(n=1))
    assert [e["state"] for e in record.events("20260101-000000-abcdef")] == ["queued", "running", "succeeded"]
    assert record.get(record.create(JobRun(name="new")).id).name == "new"


def test_tables_that_are_not_a_record_s_are_left_alone(tmp_path):
    url = made("CREATE TABLE runs (id INTEGER, horse TEXT)", tmp_path/"races.db")
    with pytest.raises(BadRequest, match="runs differs in .*horse.*\n.*a place of its own"): connect.__wrapped__(url)
    with sqlite3.connect(tmp_path/"races.db") as db:
        assert [r[0] for r in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")] == ["runs"]


def test_an_older_schema_is_brought_forward_by_one_of_many(tmp_path, monkeypatch):
    brought_forward(f"sqlite:///{tmp_path}/a.db", tmp_path, monkeypatch)


def test_a_newer_schema_is_refused_in_two_lines(workspace):
    with Record(Settings.load()).engine.begin() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    done = scalai("runs", cwd=workspace)
    assert (
        done.code == 2
        and len(done.lines) == 2
        and "is of schema 9999, and this scalai-nb knows those up to" in done.lines[0]
    )


def test_opening_a_record_that_is_up_to_date_needs_no_alembic(workspace):
    Record(Settings.load())
    seen = (
        "import sys; from scalai_nb.jobs.record import Record; Record().runs(); print([m for m in sys.modules if"
        " m.startswith('alembic')])"
    )
    assert (
        subprocess.run([sys.executable, "-c", seen], cwd=workspace, capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


@pytest.mark.slow
def test_the_schema_on_postgresql(postgres, tmp_path, monkeypatch):
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(lambda _: connect.__wrapped__(postgres.uri()), range(8)))
    assert differences(engines[0]) == []
    for e in engines: e.dispose()
    brought_forward(postgres.uri(), tmp_path, monkeypatch)
    monkeypatch.undo()
    with postgres.connect() as db: db.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BadRequest, match="9999"): connect.__wrapped__(postgres.uri())
    with postgres.connect() as db: db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    with postgres.connect() as db: db.execute(OLD)
    engine = connect.__wrapped__(postgres.uri())
    assert differences(engine) == []
    engine.dispose()
