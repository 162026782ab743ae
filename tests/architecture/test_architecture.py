"""What the code promises about itself: sizes, who commits, exports, documentation, migrations."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import edda_engine
import edda_wsgi
from edda_engine import errors
from edda_engine.runtime import probes
from edda_engine.storage import migrate
from edda_engine.storage.database import Database
from edda_engine.storage.schema import TABLE_NAMES, metadata
from edda_wsgi import settings

ROOT = Path(__file__).parents[2]
PACKAGES = (edda_engine, edda_wsgi)
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package.__name__).rglob("*.py"))
MAX_LINES = 400


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules() -> Iterator[ModuleType]:
    """Every module of both packages, except the ones that Alembic loads and the one that gunicorn does."""
    for package in PACKAGES:
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations." not in found.name:
                yield importlib.import_module(found.name)


# Sizes.


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_a_file_has_one_idea_and_stays_under_four_hundred_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_a_module_says_how_it_thinks_or_who_may_call_it(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))


# Who commits.


def commits_on_connections(path: Path) -> list[int]:
    """Lines that end a database transaction, other than a session's (which, in an activity, only ends a savepoint)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of = ast.unparse(node.func.value)
        is_session = "session" in of.lower() or of == "self._sync"
        # These hand a unit of work on; none of them is a connection.
        is_unit = of.endswith(("_committer", "owner", "run", "_executor", "transaction")) or of == "self"
        if node.func.attr == "commit" and not is_session and not is_unit:
            found.append(node.lineno)
        if node.func.attr == "begin" and any(word in of for word in ("conn", "engine")):
            found.append(node.lineno)
    return found


def test_only_the_database_and_an_attempts_transaction_begin_and_commit() -> None:
    who = {shown(path) for path in SOURCES if commits_on_connections(path)}
    assert who == {"edda_engine/storage/database.py", "edda_engine/runtime/transactions.py"}


def test_no_text_of_sql_commits() -> None:
    by_text = re.compile(r"""["']\s*(COMMIT|END)\b""")
    assert [shown(path) for path in SOURCES if by_text.search(path.read_text())] == []


def test_only_the_database_makes_connections_that_commit_by_themselves() -> None:
    who = [shown(path) for path in SOURCES if 'isolation_level="AUTOCOMMIT"' in path.read_text()]
    assert sorted(who) == ["edda_engine/storage/alone.py", "edda_engine/storage/database.py"]


def test_only_what_looks_or_notifies_uses_connections_that_commit_by_themselves() -> None:
    who = {shown(path) for path in SOURCES if ".autocommitting()" in path.read_text()}
    assert who == {
        f"edda_engine/runtime/{name}.py" for name in ("claimer", "liveness", "notifier", "service", "wakeups")
    }


def test_only_the_committer_and_the_claimer_write_with_statements_that_are_alone() -> None:
    ways = (".execute_alone(", "database.kept(", "service.alone(")
    who = {shown(path) for path in SOURCES if any(way in path.read_text() for way in ways)}
    assert who == {f"edda_engine/runtime/{name}.py" for name in ("claimer", "committer", "service")}


# Probes.


def passed_points() -> set[str]:
    """The points that the code names to a probe, itself or as the name of what it writes."""
    calls = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = {
        inner.value
        for call in calls
        if ast.unparse(call.func).endswith("probe")
        for argument in call.args
        if not isinstance(argument, ast.JoinedStr)
        for inner in ast.walk(argument)
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
    }
    written = {
        call.args[0].value
        for call in calls
        if re.fullmatch(
            r"self\._service\.write(_until_answered)?|application\.client\.write|self\.write|self\._prune_all",
            ast.unparse(call.func),
        )
        if isinstance(call.args[0], ast.Constant)
    }
    return named | {f"{name}.{when}_commit" for name in written for when in ("before", "after")}


def test_the_points_where_tests_can_kill_are_exactly_those_that_the_code_passes() -> None:
    assert set(probes.POINTS) == passed_points()
    assert len(set(probes.POINTS)) == len(probes.POINTS)


# Exports.


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_all_names_exactly_the_public_names_sorted(package: ModuleType) -> None:
    public = {
        name
        for name, value in vars(package).items()
        if (not name.startswith("_") or name == "__version__") and not inspect.ismodule(value)
    }
    assert package.__all__ == sorted(public)


def test_flask_has_everything_of_the_engine_except_its_asyncio_application() -> None:
    assert set(edda_engine.__all__) - set(edda_wsgi.__all__) == {"EddaApp"}
    assert set(edda_wsgi.__all__) - set(edda_engine.__all__) == {"EddaFlask"}


def test_names_mean_the_same_in_both_packages_except_those_that_are_synchronous_in_flask() -> None:
    shared = set(edda_engine.__all__) & set(edda_wsgi.__all__)
    different = {name for name in shared if getattr(edda_engine, name) is not getattr(edda_wsgi, name)}
    assert different == {"Workflow", "send_event", "workflow"}


def test_every_public_error_is_exported() -> None:
    declared = {name for name, value in vars(errors).items() if is_error(value) and issubclass(value, Exception)}
    assert declared <= set(edda_engine.__all__)


def test_the_ready_made_policies_are_where_users_look_for_them() -> None:
    from edda_engine import retry
    from edda_engine.outbox import transactional

    assert {"DEFAULT_RETRY", "AGGRESSIVE_RETRY", "CONSERVATIVE_RETRY", "INFINITE_RETRY"} <= set(retry.__all__)
    assert transactional.send_event_transactional is edda_engine.send_event_transactional


# Documentation.


def is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == errors.__name__


def error_names() -> list[str]:
    return sorted(name for name, value in vars(errors).items() if is_error(value))


def drawn_tree() -> dict[str, str | None]:
    """The classes drawn in the docstring of errors.py, each with the class above it."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([\s│├└─]*)([A-Z]\w+)(?=\s|$)", line)
        if not match or not line.startswith("    "):
            continue
        depth, name = len(match[1]), match[2]
        above = [(level, other) for level, other in above if level < depth]
        parents[name] = above[-1][1] if above else None
        above.append((depth, name))
    return parents


def test_the_tree_drawn_in_errors_names_every_class() -> None:
    assert sorted(drawn_tree()) == error_names()


@pytest.mark.parametrize("name", error_names())
def test_an_error_stands_in_the_drawn_tree_under_its_base(name: str) -> None:
    kind = getattr(errors, name)
    base = next((base.__name__ for base in kind.__bases__ if is_error(base)), None)
    assert drawn_tree()[name] == base


@pytest.mark.parametrize("name", [name for name in error_names() if issubclass(getattr(errors, name), Exception)])
def test_every_public_error_has_an_entry_in_the_reference(name: str) -> None:
    text = (ROOT / "docs/reference/errors.md").read_text()
    assert has_entry(text, name)


@pytest.mark.parametrize("name", settings.names())
def test_every_setting_has_an_entry_in_the_reference(name: str) -> None:
    text = (ROOT / "docs/reference/settings.md").read_text()
    assert has_entry(text, name)


def has_entry(text: str, name: str) -> bool:
    """Whether *text* has a heading, a row of a table or a term of a definition list of that name."""
    heading, row, term = rf"^#+ .*\b{name}\b", rf"^\|\s*`?{name}\b", rf"^`{name}\b.*`.*\n: "
    return any(re.search(form, text, re.MULTILINE) for form in (heading, row, term))


def undocumented(owner: Any, name: str) -> Iterator[str]:
    if not inspect.getdoc(owner):
        yield name
    if inspect.isclass(owner):
        for inner, value in vars(owner).items():
            if inner.startswith("_"):
                continue
            target = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if inspect.isfunction(target) and not inspect.getdoc(target):
                yield f"{name}.{inner}"


def test_every_public_function_class_and_method_has_a_docstring() -> None:
    without = [
        missing
        for module in modules()
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        for missing in undocumented(value, f"{module.__name__}.{name}")
    ]
    assert without == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_tells_type_checkers_that_it_is_typed(package: ModuleType) -> None:
    assert (Path(package.__path__[0]) / "py.typed").exists()


# Imports.


@pytest.mark.parametrize("path", SOURCES, ids=shown)
def test_imports_are_absolute(path: Path) -> None:
    relative = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert relative == []


def test_every_module_can_be_imported() -> None:
    assert {module.__name__.split(".")[0] for module in modules()} == {"edda_engine", "edda_wsgi"}


# The schema.


def test_migrations_make_exactly_what_the_metadata_says(bare_database_url: str) -> None:
    database = Database.from_url(bare_database_url)
    assert migrate.upgrade(database) is True

    def only_ours(_object: Any, name: str | None, kind: str, _reflected: bool, _compare_to: Any) -> bool:
        return kind != "table" or name in metadata.tables

    with database.service.connect() as conn:
        context = MigrationContext.configure(
            conn,
            opts={"include_object": only_ours, "compare_type": True, "version_table": migrate.VERSION_TABLE},
        )
        differences = compare_metadata(context, metadata)
        revision = migrate.current_revision(conn)
    again = migrate.upgrade(database)
    problem = migrate.check(database)
    database.close()
    assert differences == []
    assert (revision, again, problem) == (migrate.HEAD, False, None)


def test_migrations_make_the_same_constraints_and_defaults_as_the_metadata(bare_database_url: str) -> None:
    """What Alembic's comparison does not look at: CHECKs, defaults, NOT NULLs, the predicates of partial indexes."""
    database = Database.from_url(bare_database_url)
    migrate.upgrade(database)
    migrated = described(database)
    with database.write() as conn:
        metadata.drop_all(conn)
        metadata.create_all(conn)
    made = described(database)
    database.close()
    assert migrated == made


def described(database: Database) -> dict[str, Any]:
    from sqlalchemy import inspect as inspect_database

    with database.service.connect() as conn:
        inspector = inspect_database(conn)
        return {
            table: {
                "columns": {
                    column["name"]: (str(column["type"]), column["nullable"], column["default"])
                    for column in inspector.get_columns(table)
                },
                "primary_key": inspector.get_pk_constraint(table)["constrained_columns"],
                "checks": sorted(
                    (str(check["name"]), " ".join(str(check["sqltext"]).split()))
                    for check in inspector.get_check_constraints(table)
                ),
                "indexes": sorted(
                    (str(index["name"]), str(index["column_names"]), bool(index["unique"]), _predicate(index))
                    for index in inspector.get_indexes(table)
                ),
            }
            for table in sorted(metadata.tables)
        }


def _predicate(index: Any) -> str:
    options = index.get("dialect_options", {})
    return str(next((value for name, value in options.items() if name.endswith("_where")), ""))


def test_every_table_is_named_so_that_it_can_stand_beside_the_applications() -> None:
    assert all(name.startswith("edda_") for name in TABLE_NAMES)


def test_every_constraint_and_index_has_a_name() -> None:
    unnamed = [
        (table.name, type(constraint).__name__)
        for table in metadata.tables.values()
        for constraint in (*table.constraints, *table.indexes)
        if constraint.name is None and not type(constraint).__name__.startswith("PrimaryKey")
    ]
    assert unnamed == []
