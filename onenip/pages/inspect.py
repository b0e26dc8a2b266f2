"""The page *Inspect*: one image with heat map and true mask, as champion and challenger see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from onenip.data.manifest import match_masks
from onenip.detector.heatmaps import draw_heat
from onenip.detector.prediction import Prediction, Region, find_regions
from onenip.errors import ImageError, OneNIPError
from onenip.images import IMAGE_SUFFIXES, find_images, load_mask
from onenip.pages import charts
from onenip.pages.common import (
    CACHE_SECONDS,
    CATEGORY,
    choose_category,
    draw_verdict,
    keep_question,
    list_answers,
    load_candidates,
    open_answer,
    plain,
    read_answer_image,
    read_settings,
)
from onenip.pages.models import Candidate, JudgedUpload, judge_upload, load_version
from onenip.pages.people import ask_person, may
from onenip.pages.viewer import Panel, draw_viewer
from onenip.registry.versions import list_versions
from onenip.review.answers import Answer, Answers, Feedback
from onenip.review.items import Label

_UPLOAD_TYPES = sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_MIN_AREA_PX = 4
_KEPT_ANSWERS = 16
_IMAGE = "image"  # of the address, and of the session's state
_NOTHING = {
    "folder": "No images here: put some into the folder that `--folder` names, or drop some.",
    "served": "No answers of this category yet: `onenip serve --recent FOLDER` keeps them.",
    "dropped": "Drop images on the left.",
}
_SAID = "said"
_REALLY: dict[Label, str] = {"good": "Good", "defect": "Defective", "unsure": "Cannot say"}
_QUESTION = (CATEGORY, "from", "version", _IMAGE)


def draw() -> None:
    """Draw the page."""
    head, place = st.container(), open_answer(*_QUESTION)
    with head:
        category = choose_category()
        if category is None:
            return
        names = _list_names(category)
        version = _choose_version(category)
        if not names:
            st.info(_NOTHING[st.session_state["from"]])
            return
        name = _choose_image(names)
    keep_question(*_QUESTION)
    content = _read(name)
    with place:
        if content is None:
            st.info(f"{plain(name)} is not kept any more. Choose another image.")
            return
        candidates = load_candidates(category) if version is None else [_load(category, version)]
        _draw_image(name, content, category, candidates)
        if name.startswith("served: "):
            _draw_feedback(st.session_state["answers"][name])
        with st.expander("Prompts: the normal images that the model compares with"):
            for candidate in candidates:
                st.caption(f"{candidate.title}, {candidate.detector.digest[:12]}")
                st.image(list(candidate.detector.prompt_images(category)), width=140)


def _list_names(category: str) -> list[str]:
    """Images to choose from: what was dropped, else the folder's, else the server's latest answers."""
    side = st.sidebar
    source = side.segmented_control(
        "Images",
        ["folder", "served", "dropped"],
        default="folder",
        required=True,
        key="from",
        bind="query-params",
    )
    if source == "dropped":
        uploads = side.file_uploader(
            "Drop images", _UPLOAD_TYPES, accept_multiple_files=True, key="uploads"
        )
        dropped = dict(zip(_number([one.name for one in uploads]), uploads, strict=True))
        st.session_state["dropped"] = dropped
        return list(dropped)
    if source == "served":
        answers = {f"served: {one.title}": one for one in list_answers(category=category)}
        st.session_state["answers"] = answers
        return list(answers)
    names, root = _list_folder(category)
    side.caption(f"{len(names)} images in {root}")
    return names


@st.cache_data(ttl=CACHE_SECONDS, show_spinner="Looking into the folder…")
def _list_folder(category: str) -> tuple[list[str], str]:
    """Names of the category's images below the folder to browse, test images first."""
    folder = read_settings().folder
    own = folder / category if (folder / category).is_dir() else folder
    names = [path.relative_to(folder).as_posix() for path in find_images(own)[0]]
    images = [name for name in names if "/ground_truth/" not in f"/{name}"]
    return sorted(images, key=lambda name: ("/test/" not in name, name)), str(own)


def _choose_version(category: str) -> int | None:
    """A version of the registry; None shows champion and challenger."""
    if read_settings().model is not None:
        return None
    numbers = [str(number) for number in _list_versions(category)]
    both = "champion and challenger"
    chosen = st.sidebar.selectbox(
        "Version", [both, *reversed(numbers)], key="version", bind="query-params"
    )
    return None if chosen == both else int(chosen)


@st.cache_data(ttl=CACHE_SECONDS, show_spinner="Reading the registry…")
def _list_versions(category: str) -> list[int]:
    return [version.number for version in list_versions(category)]


@st.cache_resource(ttl=CACHE_SECONDS, show_spinner="Loading the model…", max_entries=4)
def _load(category: str, version: int) -> Candidate:
    return load_version(category, version)


def _choose_image(names: list[str]) -> str:
    """The image to show: by name, by buttons, or by the arrow keys."""
    if st.session_state.get(_IMAGE, names[0]) not in names:
        st.session_state[_IMAGE] = names[0]
        st.rerun()  # before the new one is named beside the old one's answer
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = st.selectbox("Image", names, key=_IMAGE, bind="query-params")
        at = names.index(name)
        st.button("Previous", shortcut="Left", on_click=_go, args=(names, at - 1), disabled=at == 0)
        is_last = at == len(names) - 1
        st.button("Next", shortcut="Right", on_click=_go, args=(names, at + 1), disabled=is_last)
        st.caption(f"{at + 1} of {len(names)}")
    return name


def _go(names: list[str], at: int) -> None:
    st.session_state[_IMAGE] = names[at]


def _read(name: str) -> bytes | None:
    """Bytes of an image; None if it is gone."""
    kind = name.partition(": ")[0]
    if kind == "dropped":
        return bytes(st.session_state["dropped"][name].getvalue())
    if kind == "served":
        return read_answer_image(st.session_state["answers"][name])
    path = read_settings().folder / name
    return path.read_bytes() if path.is_file() else None


def judge(content: bytes, category: str, candidates: list[Candidate]) -> JudgedUpload:
    """As `judge_upload`; the latest answers are kept, as long as models and thresholds stay the same."""
    known = [one.detector for one in candidates]
    models = tuple((one.digest, one.spec.categories[category].image_threshold) for one in known)
    return _judge(content, category, models, candidates)


@st.cache_data(max_entries=_KEPT_ANSWERS, show_spinner="Looking at the image…")
def _judge(
    content: bytes,
    category: str,
    models: tuple[tuple[str, float], ...],  # noqa: ARG001  # part of the cache's key
    _candidates: list[Candidate],
) -> JudgedUpload:
    return judge_upload(content, category, _candidates)


def _draw_image(name: str, content: bytes, category: str, candidates: list[Candidate]) -> None:
    try:
        found = judge(content, category, candidates)
    except ImageError as error:
        st.error(f"{plain(name)} cannot be judged: {plain(error.reason)}")
        return
    if found.looks_like != category:
        looks_like = plain(found.looks_like)
        st.warning(
            f"It looks like {looks_like}, not like {plain(category)}: is the category right?"
        )
    for candidate, prediction in zip(candidates, found.predictions, strict=True):
        _draw_answer(name, found.image, candidate, prediction)


def _draw_feedback(answer: Answer) -> None:
    """Buttons that say what a part really was; reviewers see it then."""
    st.subheader("What was it really?", divider="gray")
    if said := st.session_state.pop(_SAID, ""):
        st.success(plain(said))
    person = ask_person()
    if not may(person, "inspector", [answer.facts["category"]]) or person is None:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = st.text_input("Kind, if it is a defect", width=220, key=f"kind/{answer.id}")
        for label, word in _REALLY.items():
            named = kind if label == "defect" else ""
            args = (answer.id, label, person.name, named)
            st.button(word, key=f"really/{label}", on_click=_say, args=args)


def _say(answer: str, label: Label, by: str, kind: str) -> None:
    try:
        Answers(read_settings().answers).give_feedback(Feedback(answer, label, by, kind))
    except OneNIPError as error:
        st.error(plain(str(error)))
        return
    st.session_state[_SAID] = f"{by} says: {_REALLY[label].lower()}. It waits for review."


def _draw_answer(
    name: str, image: NDArray[np.uint8], candidate: Candidate, found: Prediction
) -> None:
    draw_verdict(
        found.verdict,
        f"score **{found.score:.2f}**, threshold {found.threshold:.2f}",
        f"{candidate.title}, {candidate.detector.digest[:12]}",
    )
    if found.is_provisional:
        st.warning(
            "Provisional: the model was never trained on this category, only shown its prompts."
        )
    if found.normals_needed:
        st.warning(
            "The score ranks images; it cannot judge one yet. Normal images that a verdict still "
            f"needs: {found.normals_needed}."
        )
    place = st.container()
    highest = max(float(found.map.max()), 2 * found.pixel_threshold, 0.1)
    known = candidate.detector.spec.categories[found.category]
    left, right = st.columns([3, 2])
    with left:
        charts.draw_score(found.score, found.threshold, known.normal_scores, verdict=found.verdict)
    with right:
        threshold = st.slider(
            "Pixel threshold",
            0.0,
            highest,
            min(max(found.pixel_threshold, 0.0), highest),
            key=f"{name}/{candidate.title}",
            help="Changes boxes and colours, not the verdict.",
        )
    regions: tuple[Region, ...] = ()
    if found.verdict != "normal" or threshold != found.pixel_threshold:  # a normal image has no box
        regions = find_regions(found.map, threshold=threshold, min_area_px=_MIN_AREA_PX)
    with right:
        rows = [{"": at} | _to_row(region) for at, region in enumerate(regions, start=1)]
        if rows:
            st.dataframe(rows, hide_index=True)
        else:
            st.caption("no region")
    heat = draw_heat(image, found.map, pixel_threshold=threshold)
    panels = [
        Panel(f"{name}, {image.shape[1]} x {image.shape[0]} px", image),
        Panel("heat map, regions by number", image, heat=heat, regions=regions),
    ]
    mask = _find_mask(name)
    if mask is not None and mask.shape == image.shape[:2]:
        panels.append(Panel("true mask", mask.astype(np.uint8) * 255))
    with place:
        draw_viewer(f"{name}/{candidate.title}", panels)


@st.cache_data(ttl=CACHE_SECONDS, show_spinner=False)
def _match_masks(category: str) -> dict[str, str]:
    folder = read_settings().folder
    names = [p.relative_to(folder).as_posix() for p in find_images(folder / category)[0]]
    masks = [name for name in names if "/ground_truth/" in name]
    return match_masks([name for name in names if "/test/" in name], masks)


def _find_mask(name: str) -> NDArray[np.bool_] | None:
    """The true mask [H, W] of an image of the folder, None if there is none."""
    folder = read_settings().folder
    category = Path(name).parts[0]
    if not (folder / category).is_dir():
        return None
    mask = _match_masks(category).get(name)
    try:
        return None if mask is None else load_mask(folder / mask)
    except ImageError as error:
        st.caption(f"Its true mask cannot be shown: {plain(error.reason)}")
        return None


def _number(names: Sequence[str]) -> list[str]:
    """Titles of dropped files: of those that share a name, the later ones have a number."""
    titles: list[str] = []
    for name in names:
        title, number = f"dropped: {name}", 1
        while title in titles:
            number += 1
            title = f"dropped: {name} ({number})"
        titles.append(title)
    return titles


def _to_row(region: Region) -> dict[str, float]:
    return {name.replace("_", " "): round(value, 2) for name, value in asdict(region).items()}
