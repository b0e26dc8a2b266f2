"""The page *Decide*: champion beside challenger, the threshold, and the decisions about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import streamlit as st

from onenip.data.manifest import DATA_DIR
from onenip.detector.operating_points import describe_doubts, describe_point, find_threshold
from onenip.errors import OneNIPError
from onenip.evaluation import curves
from onenip.evaluation.counts import COUNT_NAMES, describe_share, describe_wrong
from onenip.evaluation.report.pictures import describe_verdict
from onenip.evaluation.results import ImageResult
from onenip.operation.threshold_change import Preview, count_again, load_tested, preview
from onenip.pages import charts
from onenip.pages.common import (
    CACHE_SECONDS,
    choose_category,
    draw_pictures,
    forget,
    list_answers,
    load_candidates,
    plain,
)
from onenip.pages.models import Candidate
from onenip.pages.people import ask_person, may
from onenip.registry import approval, audit
from onenip.registry.evaluations import find_report
from onenip.registry.tags import GateVerdict, Version
from onenip.registry.versions import CHALLENGER, CHAMPION

_DONE = "decided"
_FAILED = "not decided"
_SHOWN = 24
_GATE_COLOURS: dict[GateVerdict, Literal["green", "orange", "red"]] = {
    "promote": "green",
    "hold": "orange",
    "reject": "red",
}
_NUMBERS = "figures that rank and localise"


def draw() -> None:
    """Draw the page."""
    category = choose_category()
    if category is None:
        return
    st.title(category, anchor=False)
    if _DONE in st.session_state:
        st.success(plain(st.session_state.pop(_DONE)))
    if _FAILED in st.session_state:
        st.error(plain(st.session_state.pop(_FAILED)))
    found = {one.role: one for one in load_candidates(category) if one.version is not None}
    champion, challenger = found.get(CHAMPION), found.get(CHALLENGER)
    if not found:
        st.info(
            "No version is registered. `onenip register` registers the model that was trained last."
        )
        return
    person = ask_person()
    by = person.name if may(person, "approver", [category]) and person is not None else ""
    if challenger is None:
        st.caption("No challenger waits for a decision. `onenip run` or new images bring one.")
    versions = {
        f"{role} {one.version.number}": one.version for role, one in found.items() if one.version
    }
    tested = {title: _load_tested(version) for title, version in versions.items()}
    versions = {title: count_again(one, tested[title]) for title, one in versions.items()}
    st.dataframe(compare_wrong(versions), hide_index=True)
    if challenger is not None:
        _draw_challenger(category, challenger, by)
    if len(tested) == 2:
        _draw_changes(*tested.values())
    with st.expander(_NUMBERS):
        st.dataframe(compare_figures(versions), hide_index=True)
    candidates = [one for one in (champion, challenger) if one is not None]
    _draw_threshold(category, candidates, tested, by)
    if champion is not None and by:
        with st.expander("Roll back: undo the last threshold, else the last approval"):
            _draw_rollback(category, champion.version, by)
    st.subheader("History", divider="gray")
    _draw_history(category)


def compare_wrong(versions: Mapping[str, Version]) -> list[dict[str, str]]:
    """A row for each version: wrong verdicts on its test images, where it comes from."""
    return [
        {
            "version": title,
            **describe_wrong(one.metrics),
            "since (UTC)": f"{one.decided_at or one.created_at:%Y-%m-%d %H:%M}",
            "by": one.approver or "-",
            "model": one.digest[:12],
            "data": one.data_version[:10] or "-",
        }
        for title, one in versions.items()
    ]


def compare_figures(versions: Mapping[str, Version]) -> list[dict[str, str]]:
    """A row per further figure on the test set: champion, challenger, change."""
    *before, last = versions.values()
    rows = []
    for name, value in last.metrics.items():
        if name in COUNT_NAMES:
            continue
        row = {"figure": name.replace("_", " ")}
        for title, one in versions.items():
            row[title] = f"{one.metrics[name]:.3f}" if name in one.metrics else ""
        if before and name in before[0].metrics:
            row["change"] = f"{value - before[0].metrics[name]:+.3f}"
        rows.append(row)
    return rows


@st.cache_data(ttl=10 * CACHE_SECONDS, show_spinner="Fetching the evaluation…")
def _load_tested(version: Version) -> list[ImageResult]:
    return load_tested(version)


def _draw_challenger(category: str, challenger: Candidate, by: str) -> None:
    """The gate's word, warnings, and the form in which `by`, if anybody, decides."""
    version = challenger.version
    assert version is not None
    gate = version.gate
    st.subheader(f"Version {version.number} waits for a decision", divider="gray")
    if gate is None:
        st.caption("The gate was not asked about it.")
    else:
        st.badge(f"gate: {gate.verdict}", color=_GATE_COLOURS[gate.verdict])
        st.markdown("\n".join(f"- {plain(reason)}" for reason in gate.reasons))
    for doubt in describe_doubts(challenger.detector.spec.categories[category]):
        st.warning(f"Training says: {plain(doubt)}.")
    if address := _find_report(version.run_id):
        st.link_button("Report to sign", address)
    is_refused = gate is not None and gate.verdict == "reject"
    if not by:
        return
    with st.form("decision"):
        reason = st.text_input("Reason", key="decision/reason")
        override = is_refused and st.checkbox("Approve although the gate rejected it")
        with st.container(horizontal=True):
            approved = st.form_submit_button("Approve", type="primary")
            rejected = st.form_submit_button("Reject")
    number = version.number
    if approved:
        _decide(
            lambda: approval.approve(
                category, by=by, reason=reason, version=number, override=override
            ),
            f"Version {number} was approved by {by}.",
        )
    if rejected:
        _decide(
            lambda: approval.reject(category, by=by, reason=reason, version=number),
            f"Version {number} was rejected by {by}.",
        )


def _draw_changes(before: Sequence[ImageResult], after: Sequence[ImageResult]) -> None:
    """Test images that the challenger judges otherwise, those for the worse first."""
    old = {one.name: one for one in before}
    changed = [
        (old[one.name], one)
        for one in after
        if one.name in old and old[one.name].is_anomalous != one.is_anomalous
    ]
    changed.sort(key=lambda pair: pair[1].is_anomalous == pair[1].is_defective)
    common = sum(one.name in old for one in after)
    st.markdown(f"**Other verdicts than the champion's**: {len(changed)} of {common} test images")
    pictures = [
        (DATA_DIR / now.name, f"{describe_verdict(was)} → {describe_verdict(now)}: {now.name}")
        for was, now in changed[:_SHOWN]
    ]
    draw_pictures(pictures, empty="Both judge every one of these images alike.")


def _draw_threshold(
    category: str,
    candidates: Sequence[Candidate],
    tested: Mapping[str, Sequence[ImageResult]],
    by: str,
) -> None:
    """The operating point, with a slider that shows what another one does, and the form that sets it."""
    if not candidates:
        return
    st.subheader("Operating point", divider="gray")
    titles = {f"{one.role} {one.version.number}": one for one in candidates if one.version}
    title = st.segmented_control("Of", list(titles), default=next(iter(titles)), required=True)
    spec = titles[title].detector.spec
    known = spec.categories[category]
    now = round(100 * known.operating_point.false_alarm_rate, 1)
    wanted = st.slider(
        "Expected false alarms, percent of good parts",
        0.5,
        50.0,
        min(max(now, 0.5), 50.0),
        0.5,
        key=f"rate/{title}",
        help="Lower: more defects are missed. Higher: more good parts are rejected.",
    )
    value = known.image_threshold
    if wanted != min(max(now, 0.5), 50.0):
        value = find_threshold(spec.categories, category, false_alarm_rate=wanted / 100)
    own = tested.get(title, [])
    answers = list_answers(category=category)
    digest = titles[title].detector.digest  # another model's scores say nothing here
    scores = [one.facts["score"] for one in answers if one.facts.get("digest") == digest]
    found = preview(spec, category, value, tested=own, recent_scores=scores)
    left, right = st.columns([3, 2])
    with left:
        points = {"now": found.before} | (
            {} if found.after == found.before else {"then": found.after}
        )
        charts.draw_operating_points(known.curve, curves.roc_points(own), points)
    with right:
        _draw_preview(found)
    if value == known.image_threshold:
        st.caption("Move the slider to see, and to set, another threshold.")
        return
    names = [(DATA_DIR / name, name) for name in found.changed[:_SHOWN]]
    draw_pictures(names, empty="No test image would be judged otherwise.")
    if not by:
        return
    with st.form("threshold"):
        reason = st.text_input("Reason", key="threshold/reason")
        pressed = st.form_submit_button(f"Set threshold {value:.4g}", type="primary")
    if pressed:
        one = titles[title]
        _decide(
            lambda: approval.set_threshold(
                category, value=value, by=by, reason=reason, alias=one.role, seen=one.version
            ),
            f"The threshold of {title} is {value:.4g}, set by {by}.",
        )


def _draw_preview(found: Preview) -> None:
    st.markdown(f"Now: {describe_point(found.before)}.")
    if found.after != found.before:
        st.markdown(f"Then: {describe_point(found.after)}.")
    before, after = found.tested_before, found.tested_after
    if before is None or after is None:
        st.caption("The version has no evaluation to count on.")
        return
    _draw_count("defects missed on test images", before.missed, after.missed, before.defective)
    _draw_count("false alarms on test images", before.false_alarms, after.false_alarms, before.good)
    count, changed = found.recent
    if count:
        st.caption(f"Of the server's latest {count} answers {changed} would change.")


def _draw_count(title: str, before: int, after: int, count: int) -> None:
    delta = after - before
    st.metric(title, describe_share(after, count), delta or None, delta_color="inverse")


def _draw_rollback(category: str, champion: Version | None, by: str) -> None:
    with st.form("rollback"):
        reason = st.text_input("Reason", key="rollback/reason")
        pressed = st.form_submit_button("Roll back")
    if pressed:
        _decide(
            lambda: approval.rollback(category, by=by, reason=reason, seen=champion),
            f"The last decision was rolled back by {by}.",
        )


@st.cache_data(ttl=CACHE_SECONDS / 3, show_spinner="Reading the audit trail…")
def _read_history(category: str) -> tuple[list[audit.Entry], list[str]]:
    """A category's entries, and what is wrong with them."""
    entries = audit.read_trail(category)
    return entries, audit.find_breaks(entries, audit.read_heads(category))


def _draw_history(category: str) -> None:
    entries, breaks = _read_history(category)
    rows = [
        {
            "when (UTC)": entry.at,
            "what": entry.action,
            "version": entry.version,
            "by": entry.by,
            "reason": entry.reason,
            "champion then": entry.champion or None,
        }
        for entry in reversed(entries)
    ]
    config = {"when (UTC)": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm")}
    st.dataframe(rows, hide_index=True, column_config=config)
    for problem in breaks:
        st.error(f"The audit trail is not whole: {plain(problem)}.")


@st.cache_data(ttl=10 * CACHE_SECONDS, show_spinner=False)
def _find_report(run_id: str) -> str | None:
    return find_report(run_id)


def _decide(work: Callable[[], Version], text: str) -> None:
    """Decide, and show that, or why not, on the page as it is now."""
    try:
        work()
    except OneNIPError as error:
        st.session_state[_FAILED] = str(error)
    else:
        st.session_state[_DONE] = text
    forget()
    st.rerun()
