"""Decisions over HTTP: what waits, approve, reject, rollback, threshold; by people of the list alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import APIRouter, HTTPException, Request

from onenip.errors import OneNIPError, UnreachableError
from onenip.registry import approval, store
from onenip.registry.tags import Version
from onenip.registry.versions import CHALLENGER, CHAMPION, read_snapshot
from onenip.serving.bodies import read_model
from onenip.serving.people import NotAllowedError, People, Person
from onenip.serving.schema import (
    REFUSALS,
    DecisionRequest,
    RollbackRequest,
    ThresholdRequest,
    VersionAnswer,
    describe_json,
)

_WRONG_SECONDS = 1.0  # that a wrong password costs
_LOGINS = 8  # that are checked at once: each takes 50 ms of a processor, which verdicts need, too
log = logging.getLogger(__name__)
Identify = Callable[[Request], Awaitable[Person | None]]
Asked = TypeVar("Asked", DecisionRequest, RollbackRequest, ThresholdRequest)


def make_identify(people: People, header: str, proxies: frozenset[str]) -> Identify:
    """Who sends a request, from HTTP Basic or from a trusted proxy's header.

    Args:
        people: the list.
        header: that a reverse proxy sets to the name of who logged in there; empty: none is trusted.
        proxies: addresses that it may come from.
    """
    logins = asyncio.Semaphore(_LOGINS)

    async def identify(request: Request) -> Person | None:
        is_proxy = request.client is not None and request.client.host in proxies
        named = request.headers.getlist(header) if header and is_proxy else []
        if len(named) > 1:  # one of them is the client's own
            raise HTTPException(400, f"{header}: sent twice")
        proxied = named[0] if named else ""
        authorization = request.headers.get("authorization", "")
        if logins.locked():
            raise HTTPException(503, "too many log in at once; try again", {"Retry-After": "1"})
        async with logins:
            try:
                return await asyncio.to_thread(people.identify, authorization, proxied)
            except NotAllowedError as error:
                await asyncio.sleep(_WRONG_SECONDS)
                raise refuse(error) from error
            except OneNIPError as error:  # let nobody in by a damaged list
                log.error("%s", error)
                raise HTTPException(503, "the list of people cannot be read") from error

    return identify


def refuse(error: NotAllowedError) -> HTTPException:
    """The HTTP answer to who may not."""
    headers = {"WWW-Authenticate": 'Basic realm="onenip"'} if error.status == 401 else None
    return HTTPException(error.status, str(error), headers)


def build_router(identify: Identify, key: Any) -> APIRouter:
    """The paths for decisions.

    Args:
        identify: tells who sends a request.
        key: describes the key at `/docs`.
    """
    router = APIRouter(dependencies=[key])

    @router.get("/status", response_model=list[VersionAnswer])
    async def status() -> list[dict[str, Any]]:
        """Champion and challenger of each category, and the gate's word."""
        return await _ask(_list_versions)

    def add(
        path: str, description: str, kind: type[Asked], work: Callable[[Asked, str], Version]
    ) -> None:
        """Answer at a path with the version after the work of an approver, who is named to it."""

        async def decide(request: Request) -> dict[str, Any]:
            asked = await read_model(request, kind)
            person = await identify(request)
            if person is None:
                problem = "say who decides: HTTP Basic, a name of `onenip people add`"
                raise refuse(NotAllowedError(problem, status=401))
            try:
                person.require("approver", asked.category)
            except NotAllowedError as error:
                raise refuse(error) from error
            return _describe(await _ask(lambda: work(asked, person.name)))

        router.add_api_route(
            path,
            decide,
            methods=["POST"],
            name=path.strip("/"),
            description=description,
            response_model=VersionAnswer,
            responses=REFUSALS,
            openapi_extra=describe_json(kind),
        )

    add(
        "/approve",
        "Make a category's challenger its champion.",
        DecisionRequest,
        lambda asked, by: approval.approve(
            asked.category,
            by=by,
            reason=asked.reason,
            version=asked.version,
            override=asked.override,
        ),
    )
    add(
        "/reject",
        "Refuse a category's challenger; the champion stays.",
        DecisionRequest,
        lambda asked, by: approval.reject(
            asked.category, by=by, reason=asked.reason, version=asked.version
        ),
    )
    add(
        "/rollback",
        "Undo the last threshold of a category, else its last approval.",
        RollbackRequest,
        lambda asked, by: approval.rollback(asked.category, by=by, reason=asked.reason),
    )
    add(
        "/threshold",
        "Decide from which score on the images of a category are anomalous.",
        ThresholdRequest,
        lambda asked, by: approval.set_threshold(
            asked.category,
            value=asked.value,
            by=by,
            reason=asked.reason,
            alias=CHALLENGER if asked.challenger else CHAMPION,
        ),
    )
    return router


async def _ask(work: Callable[[], Any]) -> Any:
    """What the registry answers, or the HTTP refusal that says why it does not."""

    def connect_first() -> Any:
        store.connect()
        return work()

    try:
        return await asyncio.to_thread(connect_first)
    except UnreachableError as error:
        raise HTTPException(503, str(error), {"Retry-After": "20"}) from error
    except OneNIPError as error:
        raise HTTPException(409, str(error)) from error


def _list_versions() -> list[dict[str, Any]]:
    return [
        _describe(version)
        for standing in read_snapshot().standings.values()
        for version in (standing.challenger, standing.champion)
        if version is not None
    ]


def _describe(version: Version) -> dict[str, Any]:
    return {
        "category": version.category,
        "version": version.number,
        "aliases": sorted(version.aliases),
        "approval": version.approval,
        "digest": version.digest,
        "threshold": version.threshold,
        "approver": version.approver or "",
        "reason": version.reason or "",
        "gate": version.gate.verdict if version.gate else "",
        "gate_reasons": list(version.gate.reasons) if version.gate else [],
    }
