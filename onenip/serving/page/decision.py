"""The form that approves or rejects a challenger."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from onenip.evaluation.counts import COUNT_NAMES, describe_wrong
from onenip.registry import approval
from onenip.registry.versions import Version
from onenip.serving.page.models import Candidate

_DONE = "decided"


def draw_decision(category: str, candidates: Sequence[Candidate]) -> bool:
    """Draw the comparison and the form, if a challenger waits; True if a person just decided.

    Raises:
        RegistryError: if the name or the reason is missing, or the registry refuses.
    """
    if _DONE in st.session_state:
        st.success(st.session_state.pop(_DONE))
    waiting = next((c.version for c in candidates if c.role == "challenger"), None)
    if waiting is None:
        return False
    st.subheader(f"Version {waiting.number} of {category} waits for a decision", divider="gray")
    serving = next((c.version for c in candidates if c.role == "champion"), None)
    st.dataframe(compare_figures(serving, waiting), hide_index=True)
    if waiting.gate is not None:
        st.markdown(f"Gate: **{waiting.gate.verdict}**: {'; '.join(waiting.gate.reasons)}")
    is_refused = waiting.gate is not None and waiting.gate.verdict == "reject"
    with st.form("decision"):
        by = st.text_input("Your name")
        reason = st.text_input("Reason")
        override = is_refused and st.checkbox("Approve although the gate rejected it")
        with st.container(horizontal=True):
            approved = st.form_submit_button("Approve", type="primary")
            rejected = st.form_submit_button("Reject")
    if not (approved or rejected):
        return False
    number = waiting.number
    if approved:
        now = approval.approve(category, by=by, reason=reason, version=number, override=override)
    else:
        now = approval.reject(category, by=by, reason=reason, version=number)
    st.session_state[_DONE] = f"Version {now.number} was {now.approval} by {by}."
    return True


def compare_figures(serving: Version | None, waiting: Version) -> list[dict[str, str]]:
    """A row per figure on the test set, wrong verdicts first: challenger, champion, change."""
    sides = {f"challenger {waiting.number}": waiting}
    if serving is not None:
        sides[f"champion {serving.number}"] = serving
    wrong = {title: describe_wrong(one.metrics) for title, one in sides.items()}
    rows = [
        {"figure": name} | {title: texts[name] for title, texts in wrong.items()}
        for name in next(iter(wrong.values()))
    ]
    for name, value in waiting.metrics.items():
        if name in COUNT_NAMES:
            continue
        row = {"figure": name.replace("_", " ")}
        for title, one in sides.items():
            row[title] = f"{one.metrics[name]:.3f}" if name in one.metrics else ""
        if serving is not None:
            before = serving.metrics.get(name)
            row["change"] = "" if before is None else f"{value - before:+.3f}"
        rows.append(row)
    return rows
