"""``@workflow`` and ``@activity``: names, signatures, and what ``start()`` checks before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from edda_engine import (
    ConfigurationError,
    DuplicateNameError,
    InvalidInputError,
    RetryPolicy,
    UnknownWorkflowError,
    UsageError,
    WorkflowContext,
    activity,
    workflow,
)
from edda_engine.activity import activities
from edda_engine.core.ports import NewInstance
from edda_engine.declarations import source_of
from edda_engine.workflow import DeclaredWorkflow, StartOptions, workflows
from edda_wsgi import workflow as flask_workflow


class Order(BaseModel):
    order_id: int
    note: str = ""


def prepared(
    declared: DeclaredWorkflow[..., Any], *args: Any, options: StartOptions | None = None, **kwargs: Any
) -> NewInstance:
    """What a start would write."""
    return declared.prepare(
        options or StartOptions(), args, kwargs, service="shop", default_lock_timeout=300.0, max_payload_bytes=1000
    )


def input_of(declared: DeclaredWorkflow[..., Any], *args: Any, **kwargs: Any) -> Any:
    return json.loads(prepared(declared, *args, **kwargs).input_json)


# Names.


def test_a_declaration_has_the_functions_name_its_documentation_and_its_kind() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext) -> None:
        """Fulfil an order."""

    @activity
    def charge(ctx: WorkflowContext) -> None:
        """Charge a card."""

    assert (fulfil.name, fulfil.__name__, fulfil.__doc__, fulfil.is_async) == (
        "fulfil", "fulfil", "Fulfil an order.", True,
    )  # fmt: skip
    assert (charge.name, charge.__module__, charge.is_async) == ("charge", __name__, False)
    assert "'fulfil'" in repr(fulfil)
    assert __file__ in repr(fulfil)


def test_a_name_of_its_own_replaces_the_functions() -> None:
    @workflow(name="order.fulfil", lock_timeout_seconds=7, event_handler=True)
    async def fulfil(ctx: WorkflowContext) -> None: ...

    @activity(name="card.charge", timeout_seconds=3, retry_policy=RetryPolicy(max_attempts=2))
    async def charge(ctx: WorkflowContext) -> None: ...

    assert (fulfil.name, fulfil.lock_timeout_seconds, fulfil.event_handler) == ("order.fulfil", 7, True)
    assert (charge.name, charge.timeout_seconds, charge.retry_policy) == ("card.charge", 3, RetryPolicy(max_attempts=2))
    assert workflows.find("order.fulfil") is fulfil
    assert activities.find("card.charge") is charge


@pytest.mark.parametrize("declare", [workflow, activity, flask_workflow])
def test_two_functions_under_one_name_are_refused_naming_both_places(declare: Any) -> None:
    @declare(name="twice")
    def first(ctx: WorkflowContext) -> None: ...

    with pytest.raises(DuplicateNameError) as caught:

        @declare(name="twice")
        def second(ctx: WorkflowContext) -> None: ...

    first_line = first.function.__code__.co_firstlineno
    assert caught.value.name == "twice"
    assert caught.value.first == f"{__file__}:{first_line}"
    assert caught.value.second.startswith(f"{__file__}:")
    assert caught.value.second != caught.value.first
    assert caught.value.first in str(caught.value)
    assert caught.value.second in str(caught.value)


def test_a_workflow_of_flask_and_one_of_the_engine_share_their_names() -> None:
    @workflow(name="shared")
    async def first(ctx: WorkflowContext) -> None: ...

    with pytest.raises(DuplicateNameError, match="declared as workflow 'shared'"):

        @flask_workflow(name="shared")
        async def second(ctx: WorkflowContext) -> None: ...


def test_an_activity_may_have_the_name_of_a_workflow() -> None:
    @workflow(name="order")
    async def one(ctx: WorkflowContext) -> None: ...

    @activity(name="order")
    async def other(ctx: WorkflowContext) -> None: ...

    assert workflows.find("order").function is not activities.find("order").function


def test_the_same_function_may_be_declared_again_as_a_reload_does() -> None:
    def fulfil(ctx: WorkflowContext) -> None: ...

    workflow(fulfil)
    again = workflow(fulfil)
    assert workflows.find("fulfil") is again


@pytest.mark.parametrize("declare", [workflow, activity, flask_workflow])
def test_a_factory_that_is_called_twice_cannot_declare_its_function_with_other_values(declare: Any) -> None:
    def factory(service: str) -> Any:
        database = object()

        @declare
        def note(ctx: WorkflowContext) -> None:
            print(service, database)

        return note

    note = factory("one")
    with pytest.raises(DuplicateNameError, match=r"other values of database, service.*level of its module") as caught:
        factory("two")
    assert caught.value.closes_over == ("database", "service")
    assert (workflows.get("note") or activities.get("note")) is note


def test_a_factory_may_be_called_twice_if_what_it_declares_would_do_the_same() -> None:
    shared = object()

    def factory(service: str) -> Any:
        def line(text: str) -> str:
            return f"{service} {shared} {text}"

        @activity
        def note(ctx: WorkflowContext, text: str) -> str:
            return line(text)

        @workflow
        async def notes(ctx: WorkflowContext, text: str) -> str:
            return await note(ctx, text) or await notes(ctx, text)

        return notes

    factory("one")
    assert factory("one") is workflows.find("notes")
    with pytest.raises(DuplicateNameError, match=r"activity 'note'.*other values of line"):
        factory("two")


def test_an_unknown_name_is_refused_naming_the_known_ones() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext) -> None: ...

    with pytest.raises(UnknownWorkflowError, match=r"'fulfill'.*known: .*fulfil.*WORKFLOWS"):
        workflows.find("fulfill")


# What may be declared.


@pytest.mark.parametrize("declare", [workflow, activity])
def test_a_generator_is_refused_saying_where_it_stands(declare: Any) -> None:
    def rows(ctx: WorkflowContext) -> Iterator[int]:
        yield 1

    async def async_rows(ctx: WorkflowContext) -> Any:
        yield 1

    for function in (rows, async_rows):
        with pytest.raises(ConfigurationError, match=r"rows' at .*test_declarations.py:\d+ is a generator"):
            declare(function)


@pytest.mark.parametrize("declare", [workflow, activity])
def test_a_function_without_a_context_is_refused(declare: Any) -> None:
    def lonely() -> None: ...

    def keyword_only(*, ctx: WorkflowContext) -> None: ...

    for function in (lonely, keyword_only):
        with pytest.raises(ConfigurationError, match=r"must take the context as its first argument"):
            declare(function)


def test_reserved_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="parameter 'lock_timeout_seconds', which is reserved"):

        @workflow
        async def slow(ctx: WorkflowContext, lock_timeout_seconds: int) -> None: ...

    with pytest.raises(ConfigurationError, match="parameter 'activity_id', which is reserved"):

        @activity
        async def step(ctx: WorkflowContext, activity_id: str) -> None: ...


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"@workflow decorates a function; this is 'order'"):
        workflow("order")  # type: ignore[call-overload]


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):

        @activity(colour="red")  # type: ignore[call-overload, untyped-decorator]
        def paint(ctx: WorkflowContext) -> None: ...


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_time_limit_that_leaves_no_time_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout_seconds must be a number of seconds, more than 0, not"):

        @activity(timeout_seconds=seconds)
        def hurry(ctx: WorkflowContext) -> None: ...


def test_a_retry_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="retry_policy must be a RetryPolicy, such as"):

        @activity(retry_policy={"max_attempts": 3})  # type: ignore[call-overload, untyped-decorator]
        def hurry(ctx: WorkflowContext) -> None: ...


@pytest.mark.parametrize("seconds", [0, -5, float("inf"), float("nan"), True, "300"])
def test_a_lock_timeout_that_is_no_positive_number_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigurationError, match="lock_timeout_seconds must be a number of seconds above 0"):

        @workflow(lock_timeout_seconds=seconds)
        def slow(ctx: WorkflowContext) -> None: ...


# Arguments.


def test_positional_and_keyword_arguments_and_defaults_become_the_input() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, order_id: int, *, express: bool = False, note: str = "") -> None: ...

    expected = {"order_id": 7, "express": True, "note": ""}
    assert input_of(fulfil, 7, express=True) == expected
    assert input_of(fulfil, order_id=7, express=True) == expected


def test_star_arguments_are_kept_with_their_types() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, *orders: Order, **notes: int) -> None: ...

    arguments = input_of(fulfil, Order(order_id=1), Order(order_id=2), a=3)
    assert arguments == {
        "orders": [{"order_id": 1, "note": ""}, {"order_id": 2, "note": ""}],
        "notes": {"a": 3},
    }
    assert fulfil.parameters.decode(arguments, owner="o") == ((Order(order_id=1), Order(order_id=2)), {"a": 3})


def test_positional_only_parameters_come_back_as_such() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, order_id: int, /, note: str) -> None: ...

    assert fulfil.parameters.decode(input_of(fulfil, 7, note="x"), owner="o") == ((7, "x"), {})


def test_the_context_may_be_positional_only_and_have_any_name() -> None:
    @workflow
    async def fulfil(context: Any, /, order_id: int) -> None: ...

    assert input_of(fulfil, 7) == {"order_id": 7}


def test_the_context_is_no_argument_even_where_any_name_is_one() -> None:
    @workflow
    async def anything(ctx: WorkflowContext, **more: int) -> None: ...

    @workflow
    async def by_place(ctx: Any, /, **more: int) -> None: ...

    with pytest.raises(InvalidInputError, match="'ctx' is the context"):
        prepared(anything, ctx=7)
    assert input_of(by_place, ctx=7) == {"more": {"ctx": 7}}


@pytest.mark.parametrize(
    ("args", "kwargs", "problem"),
    [
        ((), {}, "missing a required argument: 'order_id'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"order_id": 1}, "multiple values for argument 'order_id'"),
        ((1,), {"colour": "red"}, "unexpected keyword argument 'colour'"),
        (("seven",), {}, "at \\$.order_id does not fit its annotation"),
        ((1,), {"note": None}, "at \\$.note does not fit its annotation"),
        ((1,), {"note": "a\0"}, "at \\$.note is a string with a NUL"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_signature(args: Any, kwargs: Any, problem: str) -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, order_id: int, note: str = "") -> None: ...

    with pytest.raises(InvalidInputError, match=problem) as caught:
        prepared(fulfil, *args, **kwargs)
    assert caught.value.workflow_name == "fulfil"
    assert "fulfil(order_id: " in str(caught.value)
    assert "nothing was started" in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_one_model_parameter_accepts_the_whole_input_as_that_model() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, order: Order) -> None: ...

    whole = {"order": {"order_id": 7, "note": "x"}}
    given = [
        input_of(fulfil, Order(order_id=7, note="x")),
        input_of(fulfil, order=Order(order_id=7, note="x")),
        input_of(fulfil, {"order_id": 7, "note": "x"}),
    ]
    assert given == [whole] * 3
    decoded = [fulfil.parameters.decode(found, owner="o") for found in (whole, input_of(fulfil, order_id=7, note="x"))]
    assert decoded == [((Order(order_id=7, note="x"),), {})] * 2


def test_an_input_that_is_the_model_itself_is_decoded_as_the_model() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, order: Order) -> None: ...

    assert fulfil.parameters.decode({"order_id": 7}, owner="o") == ((Order(order_id=7),), {})


def test_a_whole_input_that_does_not_fit_the_model_names_the_field() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, order: Order) -> None: ...

    with pytest.raises(InvalidInputError, match=r"at \$\.order\.order_id does not fit"):
        prepared(fulfil, order_id="seven")


def test_with_two_parameters_the_fields_of_a_model_are_not_arguments() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, order: Order, note: str) -> None: ...

    with pytest.raises(InvalidInputError, match="missing a required argument"):
        prepared(fulfil, order_id=7)


def test_an_input_larger_than_the_limit_is_refused_naming_the_setting() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, note: str) -> None: ...

    with pytest.raises(InvalidInputError, match="MAX_PAYLOAD_BYTES = 1000"):
        prepared(fulfil, "ö" * 500)


# Options of a start.


def test_the_lock_timeout_is_taken_from_the_start_then_the_decorator_then_the_settings() -> None:
    @workflow
    async def plain(ctx: WorkflowContext) -> None: ...

    @workflow(lock_timeout_seconds=60)
    async def decorated(ctx: WorkflowContext) -> None: ...

    options = StartOptions(lock_timeout_seconds=20)
    found = [
        prepared(plain).lock_timeout_seconds,
        prepared(decorated).lock_timeout_seconds,
        prepared(decorated, options=options).lock_timeout_seconds,
        prepared(decorated, options=options, lock_timeout_seconds=10).lock_timeout_seconds,
    ]
    assert found == [300.0, 60, 20, 10]


def test_a_lock_timeout_that_is_a_number_of_a_class_of_its_own_becomes_a_float() -> None:
    """As those of numpy, which psycopg2 would write as ``np.float64(2.5)``."""

    class Number(float): ...

    @workflow
    async def plain(ctx: WorkflowContext) -> None: ...

    found = prepared(plain, lock_timeout_seconds=Number(2.5)).lock_timeout_seconds
    assert (type(found), found) == (float, 2.5)


def test_ids_are_made_when_none_is_given_and_differ() -> None:
    @workflow
    async def plain(ctx: WorkflowContext) -> None: ...

    made = {prepared(plain).instance_id for _ in range(50)}
    assert len(made) == 50
    assert prepared(plain, options=StartOptions(instance_id="order-7")).instance_id == "order-7"


@pytest.mark.parametrize("instance_id", ["", "x" * 256, "a\0b", 7, b"order"])
def test_an_id_that_cannot_be_stored_is_refused(instance_id: Any) -> None:
    @workflow
    async def plain(ctx: WorkflowContext) -> None: ...

    with pytest.raises(UsageError, match="instance_id must be a text of 1 to 255 characters"):
        prepared(plain, options=StartOptions(instance_id=instance_id))


def test_a_delay_is_given_in_seconds_or_as_a_timedelta() -> None:
    @workflow
    async def plain(ctx: WorkflowContext) -> None: ...

    delays = [prepared(plain, options=StartOptions(delay=given)).delay_seconds for given in (90, timedelta(minutes=2))]
    assert delays == [90.0, 120.0]


def test_a_time_to_start_is_kept_as_it_is() -> None:
    @workflow
    async def plain(ctx: WorkflowContext) -> None: ...

    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    new = prepared(plain, options=StartOptions(start_at=noon))
    assert (new.start_at, new.delay_seconds) == (noon, None)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (StartOptions(delay=1, start_at=datetime(2030, 1, 1, tzinfo=UTC)), UsageError, "delay= or start_at=, not both"),
        (StartOptions(start_at=datetime(2030, 1, 1)), ValueError, "a time without a zone is ambiguous"),
        (StartOptions(delay=-1), UsageError, "a delay is a number of seconds, 0 or more"),
        (StartOptions(delay=float("nan")), UsageError, "a delay is a number of seconds"),
        (StartOptions(priority=40_000), UsageError, "priority must be an integer from -32768 to 32767"),
        (StartOptions(priority=True), UsageError, "priority must be an integer"),
        (StartOptions(lock_timeout_seconds=-1), ConfigurationError, "lock_timeout_seconds must be a number"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: StartOptions, error: type[Exception], sentence: str) -> None:
    @workflow
    async def plain(ctx: WorkflowContext) -> None: ...

    with pytest.raises(error, match=sentence):
        prepared(plain, options=options)


# Calls in the wrong place.


def test_an_activity_called_without_a_context_says_how_to_call_the_function() -> None:
    @activity
    def charge(ctx: WorkflowContext, amount: int) -> int:
        return amount

    with pytest.raises(UsageError, match=r"needs the workflow's context.*charge\.function"):
        charge(None, 7)  # type: ignore[call-overload]
    assert charge.function(None, 7) == 7


def test_an_asyncio_start_where_nothing_can_be_awaited_says_what_flask_needs() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext) -> None: ...

    for start in (fulfil.start, fulfil.options(delay=1).start):
        with pytest.raises(UsageError, match=r"fulfil.start\(\) .*In Flask import `workflow` from edda_wsgi"):
            start()


def test_a_workflow_called_like_a_function_says_to_start_it() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext) -> None: ...

    with pytest.raises(UsageError, match=r"fulfil\.start\(\.\.\.\)"):
        fulfil(None)  # type: ignore[call-overload]


def test_a_recorded_argument_that_no_longer_exists_is_named_with_the_signature() -> None:
    from edda_engine import PayloadError

    @workflow
    async def fulfil(ctx: WorkflowContext, order_id: int) -> None: ...

    with pytest.raises(PayloadError, match=r"\$\.colour belongs to no parameter any more; the signature is \(order_id"):
        fulfil.parameters.decode({"order_id": 7, "colour": "red"}, owner="o")


def test_a_parameter_added_with_a_default_takes_it_for_older_inputs() -> None:
    @workflow
    async def fulfil(ctx: WorkflowContext, order_id: int, note: str = "none") -> None: ...

    assert fulfil.parameters.decode({"order_id": 7}, owner="o") == ((7, "none"), {})


def test_the_hash_of_a_source_changes_with_the_source_and_with_nothing_else() -> None:
    def one(ctx: Any) -> int:
        return 1

    def other(ctx: Any) -> int:
        return 2

    assert source_of(one) == source_of(one)
    assert source_of(one)[1] != source_of(other)[1]
    assert source_of(one)[0].startswith("def one(ctx")


def test_a_function_without_source_still_has_a_hash() -> None:
    scope: dict[str, Any] = {}
    exec("def made(ctx): return 1", scope)
    source, digest = source_of(scope["made"])
    assert source.startswith("# source not available")
    assert len(digest) == 16
