"""Synthetic anomalies: exact masks, reproducible, every range in force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onenip.errors import DataError, ParamsError
from onenip.params import SynthesizeParams
from onenip.synthesis.anomalies import KINDS, Synthesizer, find_foreground
from onenip.synthesis.noise import draw_blob, draw_perlin, draw_stroke
from onenip.synthesis.textures import draw_texture, load_textures
from tests.tiny import draw_normal, make_tiny_params

TEXTURES = load_textures(None, size=(64, 64), rng=np.random.default_rng(0))


def build(**changes):
    return Synthesizer(SynthesizeParams(**changes), textures=TEXTURES)


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), category=st.sampled_from(["disc", "stripes"]))
def test_outside_the_mask_the_image_is_untouched(kind, seed, category):
    """Every kind leaves all pixels outside its mask bit-identical, and changes some inside."""
    image = draw_normal(category, np.random.default_rng(seed))
    drawn = build(kinds={kind: 1.0}).draw(image, np.random.default_rng(seed))

    assert np.array_equal(drawn.image[~drawn.mask], image[~drawn.mask])
    difference = np.abs(drawn.image.astype(int) - image).max(axis=2)
    assert (difference[drawn.mask] >= 8).sum() >= 12
    assert drawn.kind == kind


def test_anomalies_that_cannot_be_seen_are_an_error():
    """Where no kind changes an image as much as params ask, drawing ends with the keys to change."""
    image = draw_normal("disc", np.random.default_rng(0))

    with pytest.raises(ParamsError, match=r"synthesize\.min_change"):
        build(kinds={"erased": 1.0}, min_change=255).draw(image, np.random.default_rng(0))


def test_the_same_seed_gives_the_same_anomaly():
    """An anomaly is a function of the image and the generator's state."""
    image = draw_normal("disc", np.random.default_rng(0))
    a, b = (build().draw(image, np.random.default_rng(5)) for _ in range(2))

    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.mask, b.mask)


def test_anomalies_stay_on_a_foreground_that_can_be_told():
    """On a plain background, masks lie on the product."""
    image = np.full((64, 64, 3), 240, np.uint8)
    image[16:48, 16:48] = draw_normal("stripes", np.random.default_rng(0))[:32, :32]
    product = find_foreground(image)
    synthesizer = build()

    masks = [synthesizer.draw(image, np.random.default_rng(i)).mask for i in range(30)]

    assert product is not None
    assert not any((mask & ~product).any() for mask in masks)


def test_foreground_can_be_ignored():
    """With `foreground_only` off, some anomaly lies on the background."""
    image = np.full((64, 64, 3), 240, np.uint8)
    image[16:48, 16:48] = 60
    synthesizer = build(foreground_only=False)

    masks = [synthesizer.draw(image, np.random.default_rng(i)).mask for i in range(20)]

    assert any(mask[:8].any() for mask in masks)


def test_no_foreground_where_the_border_is_not_plain():
    """A product that fills the image has no background to tell."""
    assert find_foreground(draw_normal("stripes", np.random.default_rng(0))) is None


def test_a_grey_image_gets_grey_anomalies():
    """Grey stays grey, unless params say otherwise."""
    image = np.repeat(draw_normal("disc", np.random.default_rng(0))[:, :, :1], 3, axis=2)
    grey = build(kinds={"perlin": 1.0}).draw(image, np.random.default_rng(1)).image
    coloured = build(kinds={"perlin": 1.0}, grey_stays_grey=False)

    assert (grey[..., 0] == grey[..., 2]).all()
    drawn = coloured.draw(image, np.random.default_rng(1)).image
    assert (drawn[..., 0] != drawn[..., 2]).any()


def test_patches_come_from_donors_too():
    """With a white donor and a black image, pasted pixels are sometimes white."""
    image, donor = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    synthesizer = build(kinds={"misplaced": 1.0})

    drawn = synthesizer.draw(image, np.random.default_rng(0), donors=[donor])

    assert drawn.image.max() > 100


def test_area_of_a_cutpaste_follows_its_range():
    """A pasted rectangle covers the share of the image that params say."""
    image = draw_normal("stripes", np.random.default_rng(0))
    synthesizer = build(
        kinds={"cutpaste": 1.0}, cutpaste_area_fraction=(0.1, 0.1), mask_visible_only=False
    )

    shares = [synthesizer.draw(image, np.random.default_rng(i)).mask.mean() for i in range(10)]

    assert np.allclose(shares, 0.1, atol=0.02)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"kinds": {"rust": 1.0}}, "kinds"),
        ({"kinds": {"scar": 0.0}}, "kinds"),
        ({"scar_width_px": [9.0, 3.0]}, "scar_width_px"),
        ({"perlin_threshold": "high"}, "perlin_threshold"),
    ],
)
def test_wrong_params_name_the_key(section, key):
    """A contradiction or an unknown kind is an error that names its key."""
    with pytest.raises(ParamsError, match=key):
        make_tiny_params(synthesize=section)


def test_perlin_noise_is_centred_and_smooth():
    """Perlin noise has a mean near 0 and small steps between neighbours."""
    noise = draw_perlin((128, 128), (4, 4), np.random.default_rng(0))

    assert abs(noise.mean()) < 0.2
    assert np.abs(np.diff(noise, axis=0)).max() < 0.15


def test_shapes_have_about_the_size_that_was_asked_for():
    """A blob covers about its area, a stroke about its length times its breadth."""
    blobs = [draw_blob((64, 64), 300, np.random.default_rng(i)).sum() for i in range(20)]
    strokes = [draw_stroke((64, 64), 40, 3, np.random.default_rng(i)).sum() for i in range(20)]

    assert 200 < np.median(blobs) < 420
    assert 60 < np.median(strokes) < 240


def test_textures_of_an_empty_folder_are_an_error(tmp_path):
    """A folder without images is named."""
    with pytest.raises(DataError, match=r"synthesize\.textures"):
        load_textures(tmp_path, size=(8, 8), rng=np.random.default_rng(0))


def test_drawn_textures_differ():
    """No two drawn textures are alike."""
    rng = np.random.default_rng(0)
    drawn = [draw_texture((32, 32), rng) for _ in range(6)]

    assert len({texture.tobytes() for texture in drawn}) == 6
