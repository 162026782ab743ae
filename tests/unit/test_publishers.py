"""Publishers: what goes over the wire, and what each answer means. No database; a real server where one is needed."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from edda_engine import ConfigurationError, PublishLaterError, PublishRefusedError
from edda_engine.outbox.publishers import CallablePublisher, HttpPublisher, OutgoingEvent, Publisher, load_publisher
from edda_engine.runtime.publication import LONGEST_DELAY_SECONDS, LONGEST_RETRY_AFTER_SECONDS, delay_seconds
from edda_engine.settings import EngineSettings, OutboxSettings
from tests.receivers import Receiver, receiving

NOW = datetime(2026, 5, 4, 3, 2, 1, 234_000, tzinfo=UTC)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def event(**values: Any) -> OutgoingEvent:
    given = {
        "event_id": "e-1", "type": "order.placed", "source": "/shop", "time": NOW, "content_type": "application/json",
    }  # fmt: skip
    payload = {} if "data_binary" in values else {"data_json": '{"number": 7}'}
    return OutgoingEvent(**(given | payload | values))


def publish(publisher: Publisher, *events: OutgoingEvent) -> None:
    async def main() -> None:
        try:
            for each in events or (event(),):
                await publisher.publish(each)
        finally:
            await publisher.close()

    asyncio.run(main())


# Over the wire.


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_an_event_is_read_by_the_cloudevents_package_as_it_was_sent(receiver: Receiver, mode: Any) -> None:
    publish(HttpPublisher(receiver.url, mode=mode), event(subject="Ärger / 7", ordering_key="order 7"))

    (came,) = receiver.taken
    assert came.get_attributes() == {
        "specversion": "1.0",
        "id": "e-1",
        "type": "order.placed",
        "source": "/shop",
        "time": NOW,
        "datacontenttype": "application/json",
        "subject": "Ärger / 7",
        "partitionkey": "order 7",
    }
    assert came.get_data() == {"number": 7}


def test_the_mode_decides_where_the_attributes_are(receiver: Receiver) -> None:
    publish(HttpPublisher(receiver.url))
    publish(HttpPublisher(receiver.url, mode="binary"))

    structured, binary = ({name.lower(): value for name, value in each.headers.items()} for each in receiver.requests)
    assert structured["content-type"] == "application/cloudevents+json"
    assert "ce-id" not in structured
    assert (binary["content-type"], binary["ce-id"]) == ("application/json", "e-1")
    assert receiver.requests[1].body == b'{"number": 7}'


@pytest.mark.parametrize("mode", ["structured", "binary"])
@pytest.mark.parametrize("value", [[1, 2], 7, "text", "", 0, False, [], {}, {"ö": None}])
def test_any_json_value_arrives_as_itself(receiver: Receiver, mode: Any, value: Any) -> None:
    publish(HttpPublisher(receiver.url, mode=mode), event(data_json=json.dumps(value)))

    assert receiver.data == [value]


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_bytes_arrive_as_bytes(receiver: Receiver, mode: Any) -> None:
    payload = bytes(range(256))

    publish(HttpPublisher(receiver.url, mode=mode), event(data_binary=payload, content_type="image/png"))

    (came,) = receiver.taken
    assert (came.get_data(), came.get_datacontenttype()) == (payload, "image/png")


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_text_of_another_type_goes_without_quotes(receiver: Receiver, mode: Any) -> None:
    text = event(data_json='"a;b"', content_type="text/csv")
    nested = event(data_json='{"a": "ö"}', content_type="text/plain")

    publish(HttpPublisher(receiver.url, mode=mode), text, nested)

    assert receiver.data == ["a;b", '{"a": "ö"}']


def test_given_headers_are_sent_and_cannot_replace_those_of_the_event(receiver: Receiver) -> None:
    headers = {"Authorization": "Bearer s3cret", "Content-Type": "text/plain"}

    publish(HttpPublisher(receiver.url, headers=headers))

    (request,) = receiver.requests
    sent = {name.lower(): value for name, value in request.headers.items()}
    assert (sent["authorization"], sent["content-type"]) == ("Bearer s3cret", "application/cloudevents+json")


# Answers.


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_an_answer_of_2xx_means_taken_whatever_it_says(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _: (status, {}, b"" if status == 204 else b"\xff{nonsense" * 50_000)

    publish(HttpPublisher(receiver.url))

    assert receiver.taken_ids == ["e-1"]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507, 599])
def test_an_answer_that_may_change_means_later(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _: (status, {}, b"come\n  back")

    with pytest.raises(PublishLaterError, match=rf"^{status} .*: come back$") as caught:
        publish(HttpPublisher(receiver.url))

    assert caught.value.retry_after_seconds is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410, 413, 415, 422, 451, 499])
def test_any_other_4xx_means_never(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _: (status, {"Retry-After": "5"}, b"no such thing")

    with pytest.raises(PublishRefusedError, match=rf"^{status} .*: no such thing$"):
        publish(HttpPublisher(receiver.url))


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_is_the_addresss_fault_and_not_the_events(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _: (status, {"Location": "https://elsewhere.example/"}, b"")

    with pytest.raises(PublishLaterError, match=f"{status} to https://elsewhere.example/: .* correct the URL"):
        publish(HttpPublisher(receiver.url))

    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [600, 777, 999])
def test_a_status_that_http_does_not_know_means_later(receiver: Receiver, status: int) -> None:
    receiver.answer = lambda _: (status, {}, b"")

    with pytest.raises(PublishLaterError, match=rf"^{status} \(not a status of HTTP\)$"):
        publish(HttpPublisher(receiver.url))


def later(seconds: float, since: datetime = NOW) -> str:
    return format_datetime(since + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "120"}, 120),
        ({"Retry-After": " 7 "}, 7),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": later(90), "Date": later(0)}, 90),  # by the clock of whoever answers
        ({"Retry-After": later(-90), "Date": later(0)}, 0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "1.5"}, None),
        ({}, None),
        ({"Retry-After": "Mon, 99 Foo 2026 77:00:00 GMT"}, None),
        ({"Retry-After": "9" * 400}, 999_999_999_999),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(
    receiver: Receiver, headers: dict[str, str], expected: float | None
) -> None:
    receiver.answer = lambda _: (503, headers, b"")

    with pytest.raises(PublishLaterError) as caught:
        publish(HttpPublisher(receiver.url))

    assert caught.value.retry_after_seconds == expected


def test_retry_after_without_the_brokers_clock_is_read_by_ours(receiver: Receiver) -> None:
    receiver.answer = lambda _: (503, {"Retry-After": later(60, datetime.now(UTC))}, b"")

    with pytest.raises(PublishLaterError) as caught:
        publish(HttpPublisher(receiver.url))

    assert 30 < (caught.value.retry_after_seconds or 0) <= 60


# Brokers that misbehave.


@contextmanager
def talking(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads the whole request and then speaks as it likes."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while not done.is_set():
                try:
                    conn, _ = listener.accept()
                except OSError:
                    return
                with conn:
                    try:
                        read_request(conn)
                        speak(conn)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def read_request(conn: socket.socket) -> None:
    """All of it, however it is cut: closing a connection with something unread resets it."""
    taken = b""
    while b"\r\n\r\n" not in taken:
        taken += conn.recv(65_536)
    head, body = taken.split(b"\r\n\r\n", 1)
    length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    assert length is not None, head
    while len(body) < int(length[1]):
        body += conn.recv(65_536)


def drip(conn: socket.socket) -> None:
    """One byte now and then, for ever: never silent for long enough to notice by silence."""
    conn.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        conn.sendall(b"X")
        threading.Event().wait(0.05)


def endless(status: str) -> Callable[[socket.socket], None]:
    def speak(conn: socket.socket) -> None:
        conn.sendall(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        while True:
            conn.sendall(b"3e8\r\n" + b"z" * 1000 + b"\r\n")

    return speak


def stays_silent(conn: socket.socket) -> None:
    while conn.recv(65_536):  # until the other side hangs up
        pass


def broken_off(conn: socket.socket) -> None:
    conn.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 1000\r\n\r\nabc")


@pytest.mark.parametrize(
    ("speak", "said"),
    [
        (lambda conn: None, "RemoteProtocolError"),
        (lambda conn: conn.sendall(b"\x16\x03\x01 who are you?\r\n\r\n"), "RemoteProtocolError"),
        (lambda conn: conn.sendall(b"HTTP/1.1 banana\r\n\r\n"), "RemoteProtocolError"),
        (lambda conn: conn.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), "RemoteProtocolError"),
        (lambda conn: conn.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000), "RemoteProtocolError"),
        (stays_silent, "no answer within 2 s"),
        (drip, "no answer within 2 s|RemoteProtocolError"),
        (endless("503 Service Unavailable"), "503 Service Unavailable: zzz"),
    ],
    ids=["hangs up", "speaks TLS", "no status", "speaks SSH", "endless headers", "silent", "drips", "endless body"],
)
def test_what_is_no_answer_means_later(speak: Callable[[socket.socket], None], said: str) -> None:
    with talking(speak) as url, pytest.raises(PublishLaterError, match=said) as caught:
        publish(HttpPublisher(url, timeout_seconds=2.0))

    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("speak", [endless("202 Accepted"), broken_off], ids=["endless", "broken off"])
def test_what_was_taken_stays_taken_whatever_follows(speak: Callable[[socket.socket], None]) -> None:
    with talking(speak) as url:
        publish(HttpPublisher(url, timeout_seconds=5))


def test_nobody_at_the_address_means_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"

    with pytest.raises(PublishLaterError, match="ConnectError"):
        publish(HttpPublisher(url))


@pytest.mark.parametrize(
    "wrong",
    [
        {"content_type": "text/plain\r\nX-Evil: 1"},
        {"content_type": "täxt/plain"},
        {"type": ""},
    ],
)
def test_an_event_that_cannot_be_sent_is_refused_for_good(receiver: Receiver, wrong: dict[str, Any]) -> None:
    with pytest.raises(PublishRefusedError, match="the event cannot be"):
        publish(HttpPublisher(receiver.url, mode="binary"), event(**wrong))

    assert receiver.requests == []


# Set-up.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "broker:80"}, "URL of HttpPublisher"),
        ({"url": "ftp://broker/"}, "URL of HttpPublisher"),
        ({"url": None}, "URL of HttpPublisher"),
        ({"url": "http://"}, "URL of HttpPublisher"),
        ({"url": "http://b/", "mode": "batch"}, "MODE of HttpPublisher is 'structured' or 'binary', not 'batch'"),
        ({"url": "http://b/", "timeout_seconds": 0}, "TIMEOUT_SECONDS"),
        ({"url": "http://b/", "timeout_seconds": "5"}, "TIMEOUT_SECONDS"),
        ({"url": "http://b/", "timeout_seconds": float("nan")}, "TIMEOUT_SECONDS"),
        ({"url": "http://b/", "headers": ["a"]}, "HEADERS"),
        ({"url": "http://b/", "headers": {"X": "a\nb"}}, "HEADERS"),
        ({"url": "http://b/", "headers": {"X Y": "a"}}, "HEADERS"),
        ({"url": "http://b/", "proxy": 1}, "cannot be made with the options given .URL, PROXY.*proxy"),
        ({}, "cannot be made with the options given .none.*url"),
    ],
)
def test_wrong_options_are_named_when_the_publisher_is_made(options: dict[str, Any], said: str) -> None:
    settings = OutboxSettings("edda_engine.outbox.publishers.HttpPublisher", options)

    with pytest.raises(ConfigurationError, match=said):
        load_publisher(settings)


def test_secrets_are_not_told() -> None:
    with pytest.raises(ConfigurationError) as caught:
        HttpPublisher("http://b/", headers={"Authorization": "s3cret\n"})
    settings = EngineSettings(
        outbox={"URL": "https://me:s3cret@b/x?key=s3cret", "HEADERS": {"Authorization": "s3cret"}}
    )

    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in str(settings.outbox)
    assert "s3cret" not in repr(settings)


class NoPublisher:
    def publish(self, _event: OutgoingEvent) -> None:
        """Not a coroutine function."""


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.Publisher", "cannot be loaded: No module named 'nowhere'"),
        ("edda_engine.outbox.publishers.Nobody", "cannot be loaded"),
        (f"{__name__}.NoPublisher", "it is no publisher"),
    ],
)
def test_a_path_that_leads_to_no_publisher_is_named(path: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load_publisher(OutboxSettings(path))


@pytest.mark.parametrize("missing", ["httpx", "cloudevents"])
def test_a_missing_extra_is_named_and_keeps_no_other_publisher_from_working(missing: str) -> None:
    script = f"""
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {missing!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Missing())
        import edda_engine
        from edda_engine.outbox.publishers import CallablePublisher, HttpPublisher
        CallablePublisher(print)
        try:
            HttpPublisher("http://broker/")
        except edda_engine.ConfigurationError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, timeout=60
    )

    assert "Install edda-wsgi[cloudevents]." in done.stdout, done.stderr
    assert missing in done.stdout


# Settings.


def test_an_address_is_enough() -> None:
    found = EngineSettings(outbox={"URL": "http://b/"}).outbox

    assert found == OutboxSettings("edda_engine.outbox.publishers.HttpPublisher", {"url": "http://b/"})


def test_options_other_than_the_relays_go_to_the_publisher() -> None:
    given = {"BACKEND": "a.B", "URL": "u", "MODE": "binary", "RETENTION_DAYS": 0.5, "CONCURRENCY": 3}

    found = EngineSettings(outbox=given).outbox

    assert found == OutboxSettings("a.B", {"url": "u", "mode": "binary"}, 0.5, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, r"OUTBOX\['BACKEND'\] is the dotted path"),
        ({"BACKEND": 7}, r"OUTBOX\['BACKEND'\]"),
        ({"BACKEND": "HttpPublisher"}, r"OUTBOX\['BACKEND'\]"),
        ({"URL": "u", "url": "u"}, "'url'; its options are in upper case"),
        ({"URL": "u", "RETENTION_DAYS": -1}, "RETENTION_DAYS"),
        ({"URL": "u", "RETENTION_DAYS": "7"}, "RETENTION_DAYS"),
        ({"URL": "u", "CONCURRENCY": 0}, "CONCURRENCY"),
        ({"URL": "u", "CONCURRENCY": True}, "CONCURRENCY"),
    ],
)
def test_a_wrong_outbox_setting_says_what_is_wrong(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        EngineSettings(outbox=given)


# Functions.

called: list[tuple[str, str]] = []


def note(event: OutgoingEvent) -> None:
    called.append((event.event_id, threading.current_thread().name))


async def note_on_the_loop(event: OutgoingEvent) -> None:
    called.append((event.event_id, threading.current_thread().name))


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    called.clear()


def test_a_plain_function_is_called_on_a_thread_and_a_coroutine_function_on_the_loop() -> None:
    publish(CallablePublisher(f"{__name__}.note"))
    publish(CallablePublisher(note_on_the_loop))

    assert [name.partition("_")[0] for _, name in called] == ["edda-publisher", "MainThread"]


def test_an_object_whose_call_is_a_coroutine_function_is_awaited() -> None:
    class Queue:
        async def __call__(self, event: OutgoingEvent) -> None:
            called.append((event.event_id, event.data["number"]))

    publish(CallablePublisher(Queue()))

    assert called == [("e-1", 7)]


def test_something_surrounds_each_call_of_a_plain_function() -> None:
    @contextmanager
    def around() -> Iterator[None]:
        called.append(("enter", ""))
        yield
        called.append(("leave", ""))

    settings = OutboxSettings("edda_engine.outbox.publishers.CallablePublisher", {"function": f"{__name__}.note"})

    publish(load_publisher(settings, around=around))

    assert [what for what, _ in called] == ["enter", "e-1", "leave"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_that_does_not_return_in_time_means_later(is_async: bool) -> None:
    let_go = threading.Event()

    def hang(_event: OutgoingEvent) -> None:
        let_go.wait(30)

    async def hang_async(_event: OutgoingEvent) -> None:
        await asyncio.sleep(30)

    try:
        with pytest.raises(PublishLaterError, match="did not return in time"):
            publish(CallablePublisher(hang_async if is_async else hang, timeout_seconds=0.05))
    finally:
        let_go.set()


def test_what_a_function_raises_reaches_the_relay() -> None:
    def refuse(_event: OutgoingEvent) -> None:
        raise PublishRefusedError("not this one")

    with pytest.raises(PublishRefusedError, match="not this one"):
        publish(CallablePublisher(refuse))


@pytest.mark.parametrize("function", ["nowhere.publish", "no_dots", f"{__name__}.nobody", 7, None])
def test_what_is_no_function_is_refused_when_the_publisher_is_made(function: Any) -> None:
    with pytest.raises(ConfigurationError, match="FUNCTION"):
        CallablePublisher(function)


def test_the_data_of_an_event_is_its_json_value_or_its_bytes() -> None:
    assert event(data_json="[1.5]").data == [1.5]
    assert event(data_binary=b"\x00").data == b"\x00"
    assert "number" not in repr(event())


# How long to wait.


def test_the_wait_doubles_up_to_ten_minutes_and_goes_on_for_ever() -> None:
    waits = [delay_seconds(attempts, None, random=0.0) for attempts in (1, 2, 3, 9, 10, 11, 1_000_000)]

    assert waits == [1, 2, 4, 256, 512, LONGEST_DELAY_SECONDS, LONGEST_DELAY_SECONDS]
    assert delay_seconds(3, None, random=1.0) == pytest.approx(3.2)


def test_what_the_broker_asks_for_wins_and_is_never_undercut() -> None:
    assert delay_seconds(20, 3, random=0.0) == 3
    assert delay_seconds(1, 100, random=1.0) == pytest.approx(110)
    assert delay_seconds(1, 1e12, random=0.0) == LONGEST_RETRY_AFTER_SECONDS
    assert delay_seconds(4, 0, random=0.0) == 8
