"""Replay: history in; for each call either its recorded outcome or "do it"."""

from __future__ import annotations

import pytest

from edda_engine.core.events import FORMAT, EventType, Recorded, StepKey
from edda_engine.core.replay import Branch, Replay
from edda_engine.errors import NewerVersionError, NonDeterminismError, UsageError


def step(activity_id: str, position: int, *, branch: str = "", name: str | None = None) -> Recorded:
    name = name or activity_id.rsplit("/", 1)[-1].split(":")[0]
    return Recorded(activity_id, branch, position, EventType.ACTIVITY_COMPLETED, {"activity_name": name, "result": 1})


def replay_of(*recorded: Recorded) -> Replay:
    return Replay("order", "i-1", recorded)


# Numbering.


def test_calls_are_numbered_by_function_and_placed_by_order() -> None:
    body = Branch()
    assert [body.take("reserve"), body.take("charge"), body.take("reserve")] == [
        StepKey("reserve:1", "", 1),
        StepKey("charge:1", "", 2),
        StepKey("reserve:2", "", 3),
    ]


def test_a_manual_id_takes_a_position_and_no_number() -> None:
    body = Branch()
    assert [body.take("charge", "the-charge"), body.take("charge")] == [
        StepKey("the-charge", "", 1),
        StepKey("charge:1", "", 2),
    ]


def test_calls_in_a_branch_are_numbered_within_it() -> None:
    body = Branch()
    body.take("reserve")
    first, second = body.child(), body.child()
    assert first.take("reserve") == StepKey("1/reserve:1", "1", 1)
    assert second.take("reserve") == StepKey("2/reserve:1", "2", 1)
    assert first.take("reserve") == StepKey("1/reserve:2", "1", 2)
    assert body.take("reserve") == StepKey("reserve:2", "", 2)


def test_branches_are_numbered_in_the_order_of_their_creation_whichever_calls_first() -> None:
    body = Branch()
    made_first, made_second = body.child(), body.child()
    assert made_second.take("a").branch == "2"
    assert made_first.take("a").branch == "1"


def test_nested_branches_are_numbered_by_path() -> None:
    body = Branch()
    outer = body.child()
    inner, other_inner = outer.child(), outer.child()
    assert inner.take("a") == StepKey("1/1/a:1", "1/1", 1)
    assert other_inner.take("a") == StepKey("1/2/a:1", "1/2", 1)
    assert outer.take("a") == StepKey("1/a:1", "1", 1)
    assert inner.child().take("a") == StepKey("1/1/1/a:1", "1/1/1", 1)


def test_a_manual_id_in_a_branch_is_taken_as_it_is() -> None:
    assert Branch().child().take("a", "mine") == StepKey("mine", "1", 1)


def test_derived_values_take_no_position_and_have_numbers_of_their_own() -> None:
    body = Branch()
    assert [body.derive("uuid4"), body.derive("uuid4"), body.derive("random")] == ["/uuid4:1", "/uuid4:2", "/random:1"]
    assert body.take("uuid4") == StepKey("uuid4:1", "", 1)


def test_derived_values_of_different_branches_differ() -> None:
    body = Branch()
    assert len({body.child().derive("uuid4"), body.child().derive("uuid4"), body.derive("uuid4")}) == 3


# Answering.


def test_replay_answers_from_history_then_asks_for_the_next_step() -> None:
    first, second = step("reserve:1", 1), step("charge:1", 2)
    replay, body = replay_of(first, second), Branch()
    answers = [replay.ask(body.take(name), name) for name in ("reserve", "charge", "ship")]
    assert answers == [first, second, None]
    replay.finish()


def test_an_empty_history_answers_nothing() -> None:
    replay = replay_of()
    assert not replay.is_replaying
    assert replay.ask(Branch().take("reserve"), "reserve") is None
    replay.finish()


def test_a_run_is_replaying_only_while_answers_are_left() -> None:
    replay, body = replay_of(step("a:1", 1), step("a:2", 2)), Branch()
    seen = [replay.is_replaying]
    for _ in range(3):
        replay.ask(body.take("a"), "a")
        seen.append(replay.is_replaying)
    assert seen == [True, True, False, False]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_steps_of_a_gather_replay_whichever_was_recorded_first(order: tuple[int, ...]) -> None:
    recorded = [step(f"fetch:{number}", number) for number in order]
    replay, body = replay_of(*recorded), Branch()
    answers = [replay.ask(body.take("fetch"), "fetch") for _ in range(3)]
    assert [answer and answer.activity_id for answer in answers] == ["fetch:1", "fetch:2", "fetch:3"]


def test_a_step_of_a_gather_that_had_not_ended_is_asked_for_though_later_ones_are_recorded() -> None:
    replay, body = replay_of(step("fetch:2", 2)), Branch()
    answers = [replay.ask(body.take("fetch"), "fetch") for _ in range(2)]
    assert [answer and answer.activity_id for answer in answers] == [None, "fetch:2"]
    replay.finish()


def test_branches_of_several_steps_replay_whatever_their_timing_was() -> None:
    recorded = [
        step("2/pay:1", 1, branch="2"),
        step("1/pay:1", 1, branch="1"),
        step("1/ship:1", 2, branch="1"),
        step("2/ship:1", 2, branch="2"),
    ]
    replay, body = replay_of(*recorded), Branch()
    one, two = body.child(), body.child()
    keys = [one.take("pay"), two.take("pay"), two.take("ship"), one.take("ship")]
    answers = [replay.ask(key, key.activity_id.split("/")[1].split(":")[0]) for key in keys]
    assert [answer and answer.activity_id for answer in answers] == ["1/pay:1", "2/pay:1", "2/ship:1", "1/ship:1"]
    replay.finish()


def test_a_manual_id_is_answered_by_that_id() -> None:
    recorded = step("the-charge", 1, name="charge")
    assert replay_of(recorded).ask(Branch().take("charge", "the-charge"), "charge") == recorded


# Refusing.


def test_another_activity_is_refused_with_the_step_what_is_recorded_and_what_is_asked() -> None:
    replay, body = replay_of(step("reserve:1", 1), step("charge:1", 2)), Branch()
    replay.ask(body.take("reserve"), "reserve")
    with pytest.raises(NonDeterminismError) as caught:
        replay.ask(body.take("refund"), "refund")
    assert caught.value.step == 2
    assert caught.value.recorded == "'charge' (charge:1)"
    assert caught.value.asked == "'refund' (refund:1)"
    assert (caught.value.workflow_name, caught.value.instance_id) == ("order", "i-1")


def test_the_refusal_says_all_of_it_and_how_to_go_on() -> None:
    with pytest.raises(NonDeterminismError) as caught:
        replay_of(step("charge:1", 1)).ask(Branch().take("refund"), "refund")
    for part in ("'order'", "'i-1'", "step 1", "'charge' (charge:1)", "'refund' (refund:1)", "flask edda retry i-1"):
        assert part in str(caught.value)


def test_a_renamed_activity_is_refused_even_under_the_same_manual_id() -> None:
    replay = replay_of(step("payment", 1, name="charge"))
    with pytest.raises(NonDeterminismError) as caught:
        replay.ask(Branch().take("pay", "payment"), "pay")
    assert (caught.value.recorded, caught.value.asked) == ("'charge' (payment)", "'pay' (payment)")


def test_reordered_activities_are_refused_at_the_first_of_them() -> None:
    replay = replay_of(step("reserve:1", 1), step("charge:1", 2))
    with pytest.raises(NonDeterminismError) as caught:
        replay.ask(Branch().take("charge"), "charge")
    assert (caught.value.step, caught.value.recorded, caught.value.asked) == (
        1, "'reserve' (reserve:1)", "'charge' (charge:1)",
    )  # fmt: skip


def test_an_activity_taken_out_of_the_middle_is_refused_where_it_was() -> None:
    replay, body = replay_of(step("reserve:1", 1), step("charge:1", 2), step("ship:1", 3)), Branch()
    replay.ask(body.take("reserve"), "reserve")
    with pytest.raises(NonDeterminismError) as caught:
        replay.ask(body.take("ship"), "ship")
    assert (caught.value.step, caught.value.recorded) == (2, "'charge' (charge:1)")


def test_an_activity_put_in_before_a_recorded_one_is_refused() -> None:
    replay = replay_of(step("charge:1", 1))
    with pytest.raises(NonDeterminismError) as caught:
        replay.ask(Branch().take("check"), "check")
    assert (caught.value.step, caught.value.asked) == (1, "'check' (check:1)")


def test_a_missing_last_activity_is_refused_when_the_body_ends() -> None:
    replay, body = replay_of(step("reserve:1", 1), step("charge:1", 2)), Branch()
    replay.ask(body.take("reserve"), "reserve")
    with pytest.raises(NonDeterminismError) as caught:
        replay.finish()
    assert (caught.value.step, caught.value.recorded) == (2, "'charge' (charge:1)")
    assert caught.value.asked == "nothing: it ended without this step"


def test_an_activity_moved_behind_the_end_of_history_is_refused_naming_both_places() -> None:
    replay, body = replay_of(step("fetch:1", 1), step("mine", 3, name="send")), Branch()
    replay.ask(body.take("fetch"), "fetch")
    with pytest.raises(NonDeterminismError) as caught:
        replay.ask(body.take("send", "mine"), "send")
    assert (caught.value.step, caught.value.recorded, caught.value.asked) == (
        2, "'send' (mine) as step 3", "it as step 2",
    )  # fmt: skip


def test_an_activity_moved_into_a_branch_is_refused_naming_the_branch() -> None:
    replay = replay_of(step("mine", 1, name="send"))
    with pytest.raises(NonDeterminismError) as caught:
        replay.ask(Branch().child().take("send", "mine"), "send")
    assert (caught.value.recorded, caught.value.asked) == ("'send' (mine) as step 1", "it as step 1 of branch 1")


def test_a_branch_that_swapped_its_steps_is_refused_though_the_other_branch_is_right() -> None:
    recorded = [step(f"{path}/{name}:1", place, branch=path) for path in "12" for place, name in ((1, "a"), (2, "b"))]
    replay, body = replay_of(*recorded), Branch()
    right, wrong = body.child(), body.child()
    assert replay.ask(right.take("a"), "a") == recorded[0]
    with pytest.raises(NonDeterminismError) as caught:
        replay.ask(wrong.take("b"), "b")
    assert caught.value.recorded == "'a' (2/a:1)"
    assert replay.ask(right.take("b"), "b") == recorded[1]


def test_an_id_used_twice_is_refused_by_name() -> None:
    replay, body = replay_of(), Branch()
    replay.ask(body.take("charge", "mine"), "charge")
    with pytest.raises(UsageError, match="activity_id 'mine' is used twice in instance 'i-1'"):
        replay.ask(body.take("charge", "mine"), "charge")


def test_a_manual_id_that_equals_a_counted_one_is_refused() -> None:
    replay, body = replay_of(), Branch()
    replay.ask(body.take("charge", "charge:1"), "charge")
    with pytest.raises(UsageError, match="'charge:1' is used twice"):
        replay.ask(body.take("charge"), "charge")


def test_a_history_in_a_newer_format_is_refused_before_anything_runs() -> None:
    newer = Recorded("a:1", "", 1, EventType.ACTIVITY_COMPLETED, {"activity_name": "a"}, format=FORMAT + 1)
    with pytest.raises(NewerVersionError, match=rf"'i-1'.*'a:1'.*format {FORMAT + 1}.*Deploy the newer version"):
        replay_of(newer)


def test_a_history_with_an_unknown_kind_of_event_is_refused_as_newer() -> None:
    with pytest.raises(NewerVersionError, match="'TeleportCompleted'"):
        replay_of(Recorded("a:1", "", 1, "TeleportCompleted", {"activity_name": "a"}))
