"""Who is at the page: a person of the list, known by a password, a company's login (OIDC) or a proxy.

Reading is open. Whoever reviews or decides signs in first, and needs the role for the category.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import streamlit as st

from onenip.errors import OneNIPError
from onenip.pages.common import plain
from onenip.serving.people import NotAllowedError, People, Person, Role

_PERSON = "person"  # of the session's state
_WRONG_SECONDS = 1.0  # that a wrong password costs
_LOCAL = "127.0.0.1"


def ask_person() -> Person | None:
    """The person at the page; without one the page asks who it is. Call it once on a page."""
    try:
        person = _find_person()
    except NotAllowedError as error:
        st.warning(str(error))
        return None
    if person is None:
        with st.popover("Sign in", width="content"):
            _draw_sign_in()
        return None
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"You are {plain(person.name)}.")
        if _PERSON in st.session_state:
            st.button("Sign out", on_click=st.session_state.pop, args=(_PERSON,))
        elif _has_login():
            st.button("Sign out", on_click=st.logout)
    return person


def may(person: Person | None, role: Role, categories: Iterable[str]) -> bool:
    """Whether the person at the page has a role for categories; a line says what is missing."""
    missing = [one for one in categories if person is None or not person.may(role, one)]
    if person is None:
        st.caption(f"Sign in as {role} to do more than look.")
    elif missing:
        st.caption(f"{plain(person.name)} is no {role} of {plain(', '.join(missing))}.")
    return person is not None and not missing


def _find_person() -> Person | None:
    """The person as the list has them now; None if nobody signed in.

    Raises:
        NotAllowedError: if a proxy or the company's login names somebody who is not on the list.
        DataError: if the list is damaged.
    """
    people = People()
    header = os.environ.get("ONENIP_INSPECT_PERSON_HEADER", "")
    proxies = os.environ.get("ONENIP_INSPECT_PROXIES", "").split(",")
    if header and (st.context.ip_address or _LOCAL) in proxies:  # None stands for this machine
        named = st.context.headers.get_all(header)
        if len(named) > 1:  # one of them is the browser's own
            raise NotAllowedError(f"{header} was sent twice", status=403)
        return people.identify("", named[0]) if named else None
    if _has_login() and st.user.get("is_logged_in"):
        address = find_address(st.user)
        if not address:
            raise NotAllowedError("the login gives no verified e-mail address", status=403)
        return people.identify("", address)
    name = st.session_state.get(_PERSON)
    return people.find(name) if name else None


def find_address(claims: Mapping[str, Any]) -> str:
    """The e-mail address of a login, unless it says in any form that it did not verify it; else nothing."""
    is_verified = claims.get("email_verified", True) in (True, "true")  # some give words
    return str(claims.get("email") or "") if is_verified else ""


def _has_login() -> bool:
    """Whether Streamlit's own login is set up, in `.streamlit/secrets.toml`."""
    return "is_logged_in" in st.user


def _draw_sign_in() -> None:
    people = People()
    if os.environ.get("ONENIP_INSPECT_PERSON_HEADER"):
        st.info("The proxy that this page is reached through says who you are; it said nobody.")
        return
    if _has_login():
        st.button("Log in", type="primary", on_click=st.login)
        return
    is_first = not people.is_listed
    if is_first and not os.environ.get("ONENIP_INSPECT_IS_PRIVATE"):
        st.info('Nobody is listed yet: `onenip people add "A. Person" --role approver`.')
        return
    with st.form("sign in", border=False):
        name = st.text_input("Name", autocomplete="username")
        password = st.text_input("Password", type="password", autocomplete="current-password")
        if is_first:
            st.caption(
                "Nobody is listed yet: whoever signs in first, on this machine, becomes approver of all "
                "categories. From then on `onenip serve` asks for people, too."
            )
        pressed = st.form_submit_button("Sign in", type="primary")
    if pressed:
        _sign_in(people, name, password, is_first=is_first)


def _sign_in(people: People, name: str, password: str, *, is_first: bool) -> None:
    try:
        if is_first:
            found: Person | None = people.add(name, "approver", password=password)
        else:
            found = people.check(name.strip(), password)
    except OneNIPError as error:
        st.error(str(error))
        return
    if found is None:
        time.sleep(_WRONG_SECONDS)
        st.error("Wrong name or password.")
        return
    st.session_state[_PERSON] = found.name
    st.rerun()
