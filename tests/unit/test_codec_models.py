"""Pydantic models whose JSON names, or whose shown form, are other ones than their fields."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pydantic.dataclasses
import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
)
from pydantic.alias_generators import to_camel
from typing_extensions import TypedDict

from edda_engine import InvalidInputError, SyncWorkflowContext, workflow
from edda_engine.core.codec import codec_for, parse
from edda_engine.errors import PayloadError
from edda_engine.workflow import StartOptions


class Charge(BaseModel):
    charge_id: str = Field(alias="chargeId")


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)
    order_id: int
    inner: list[Charge] = []


class Shown(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    order_id: int = Field(validation_alias=AliasChoices("orderId", AliasPath("ids", 0)), serialization_alias="ORDER")


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    amount: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def doubled(self) -> int:
        return 2 * self.amount


class Encoded(BaseModel):
    content: Json[list[int]]


class Exchanged(BaseModel):
    first: int = Field(alias="second")
    second: int = Field(0, alias="first")


@pydantic.dataclasses.dataclass
class Place:
    street_name: str = Field(alias="streetName")


class Entry(TypedDict):
    amount: Annotated[int, Field(alias="theAmount")]


VALUES: list[tuple[Any, Any]] = [
    (Charge, Charge(chargeId="c1")),
    (list[Charge], [Charge(chargeId="c1")]),
    (Camel, Camel(orderId=1, inner=[Charge(chargeId="c")])),  # type: ignore[call-arg]
    (Shown, Shown(orderId=1)),
    (Closed, Closed(amount=2)),
    (dict[str, Closed | None], {"a": Closed(amount=2), "b": None}),
    (Encoded, Encoded(content="[1, 2]")),  # type: ignore[arg-type]
    (Exchanged, Exchanged(second=1, first=2)),
    (Place, Place(streetName="x")),  # type: ignore[call-arg]
    (Entry, {"amount": 3}),
]


@pytest.mark.parametrize(("annotation", "value"), VALUES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_model_comes_back_whatever_its_fields_are_called_in_json(annotation: Any, value: Any) -> None:
    text, live = codec_for(annotation).round_trip(value, owner="o")
    replayed = codec_for(annotation).decode_parsed(parse(text), owner="o")
    assert live == replayed == value
    assert type(live) is type(replayed) is type(value)


@pytest.mark.parametrize("text", ['{"charge_id":"c1"}', '{"chargeId":"c1"}'])
def test_fields_are_written_by_their_names_and_read_by_their_aliases_too(text: str) -> None:
    assert codec_for(Charge).decode(text, owner="o") == Charge(chargeId="c1")
    assert codec_for(Charge).encode(Charge(chargeId="c1"), owner="o") == '{"charge_id":"c1"}'


def test_a_model_that_no_annotation_names_is_shown_as_it_wants_to_be() -> None:
    text = codec_for(dict[str, Any]).encode({"a": Closed(amount=2), "b": Shown(orderId=1)}, owner="o")
    assert json.loads(text) == {"a": {"amount": 2, "doubled": 4}, "b": {"ORDER": 1}}


def test_a_workflow_is_started_with_a_model_that_has_aliases_or_with_its_fields_under_either_name() -> None:
    @workflow
    def settle(ctx: SyncWorkflowContext, charge: Charge) -> None: ...

    def started(*args: Any, **kwargs: Any) -> Any:
        prepared = settle.prepare(
            StartOptions(), args, kwargs, service="shop", default_lock_timeout=300.0, max_payload_bytes=1000
        )
        return json.loads(prepared.input_json)

    for written in (
        started(Charge(chargeId="c1")),
        started({"chargeId": "c1"}),
        started(chargeId="c1"),
        started(charge_id="c1"),
    ):
        assert settle.parameters.decode(written, owner="o") == ((Charge(chargeId="c1"),), {})
    with pytest.raises(InvalidInputError, match="chargeId"):
        started(charge={"other": "c1"})


# Secrets.


class Login(BaseModel):
    user: str
    password: SecretStr


class Vault(Login):
    @field_serializer("password")
    def reveal(self, password: SecretStr) -> str:
        return password.get_secret_value()


@pytest.mark.parametrize(
    ("annotation", "value", "path"),
    [
        (SecretStr, SecretStr("x"), "$"),
        (Login, Login(user="u", password=SecretStr("x")), "$.password"),
        (list[SecretBytes], [SecretBytes(b"x")], "$[0]"),
        (Any, {"a": SecretStr("x")}, "$['a']"),
        (Any, {"login": Login(user="u", password=SecretStr("x"))}, "$['login'].password"),
    ],
)
def test_a_secret_is_refused_instead_of_coming_back_as_asterisks(annotation: Any, value: Any, path: str) -> None:
    with pytest.raises(PayloadError, match="only asterisks would be stored") as caught:
        codec_for(annotation).round_trip(value, owner="o")
    assert caught.value.path == path


def test_a_secret_that_its_model_writes_out_comes_back() -> None:
    vault = Vault(user="u", password=SecretStr("x"))
    for annotation in (Vault, Any):
        codec_for(annotation).round_trip(vault, owner="o")
    assert codec_for(Vault).round_trip(vault, owner="o")[1] == vault
