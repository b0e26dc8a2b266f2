"""Bodies of requests: an image's bytes and its category, from JSON or from a form.

Whatever is wrong is a refusal of one sentence that names the field, and never repeats the body.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from typing import TypeVar
from urllib.parse import unquote

from fastapi import HTTPException, Request
from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from onenip.serving.schema import MAX_NAME, ImageRequest

_USE_JSON = 'send {"image": BASE64, "category": NAME} as application/json'
_USE_FORM = "send an image file to /predict/file, as the field `file` of multipart/form-data"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_MAX_SHOWN = 60  # characters of a name that a client sent
_UNUSABLE = 422
MAP_OPTION = ("map", "png")

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request) -> tuple[bytes, str | None]:
    """Image and category of a JSON body.

    Raises:
        HTTPException: 415 or 422.
    """
    asked = await read_model(request, ImageRequest, f"{_USE_JSON}; or {_USE_FORM}")
    return decode_base64(asked.image), asked.category


async def read_model(request: Request, model: type[Model], advice: str = "") -> Model:
    """A JSON body, checked.

    Args:
        request: the request.
        model: what the body must be.
        advice: what to send instead, for refusals.

    Raises:
        HTTPException: 415 or 422.
    """
    advice = advice or f"send {', '.join(model.model_fields)} as application/json"
    _check_address(request, "application/json", advice)
    body = b"".join([part async for part in request.stream()]).removeprefix(codecs.BOM_UTF8)
    for name in model.model_fields:
        # the last one alone would count
        if len(re.findall(rb'"%s"\s*:' % name.encode(), body)) > 1:
            raise HTTPException(_UNUSABLE, f"{name}: given twice; {advice}")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = _shorten(".".join(str(part) for part in first["loc"]) or "body")
        problem = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
        raise HTTPException(_UNUSABLE, f"{where}: {problem}; {advice}") from None


async def read_form(request: Request) -> tuple[bytes, str | None]:
    """Image and category of a form.

    Raises:
        HTTPException: 415 or 422.
    """
    _check_address(request, "multipart/form-data", _USE_FORM)
    size = int(request.headers["content-length"])
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=1, max_fields=1, max_part_size=1 << 10
    )
    parser.spool_max_size = size + 1  # stays in memory: a full disk stops nobody
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, ValueError, LookupError) as error:
        problem = str(getattr(error, "message", "not a form")).rstrip(".")
        if "maximum size" in problem:
            problem = (
                "a text of over 1,024 bytes; the image needs a file name, as in -F file=@part.png"
            )
        raise HTTPException(_UNUSABLE, f"form: {problem}; {_USE_FORM}") from None
    for name in form:
        if name not in ("file", "category"):
            raise HTTPException(_UNUSABLE, f"{_shorten(name)}: unknown field; {_USE_FORM}")
    file, category = form.get("file"), form.get("category")
    if not isinstance(file, UploadFile):
        raise HTTPException(_UNUSABLE, f"file: missing; {_USE_FORM}")
    if isinstance(category, UploadFile) or not _is_name(category or ""):
        raise HTTPException(_UNUSABLE, f"category: not a name of {MAX_NAME} characters at most")
    return await file.read(), category or None


def decode_base64(text: str) -> bytes:
    """Bytes of base64, with or without line breaks, padding, a `data:` prefix; URL-safe or not.

    Raises:
        HTTPException: 422, if it is not base64.
    """
    text = text.strip("\ufeff\u00a0 \t\r\n")
    if text[:5].lower() == "data:":
        text = unquote(text.partition(",")[2])
    try:
        packed = b"".join(text.encode("ascii").split()).translate(_URL_SAFE).rstrip(b"=")
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(_UNUSABLE, f"image: not base64; {_USE_FORM}") from None


def _check_address(request: Request, kind: str, advice: str) -> None:
    """Refuse parameters in the address, and a body of another kind."""
    for name, value in request.query_params.multi_items():
        if (name, value) == MAP_OPTION and request.url.path.startswith("/predict"):
            continue
        detail = f"{_shorten(name)}: not taken from the address; put it into the body"
        if name == MAP_OPTION[0]:
            detail = "map: an answer to /predict may have map=png, and no other"
        raise HTTPException(_UNUSABLE, detail)
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != kind:
        raise HTTPException(415, f"{request.url.path} takes {kind}; {advice}")


def _is_name(text: str) -> bool:
    """Whether a text is short, and such that an answer can repeat it (a charset may give half characters)."""
    return len(text) <= MAX_NAME and not any("\ud800" <= sign <= "\udfff" for sign in text)


def _shorten(name: str) -> str:
    """A name that a client sent, printable and short."""
    return ascii(name[:_MAX_SHOWN])[1:-1]
