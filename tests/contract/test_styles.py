from sana_service.contract.styles import STYLES, apply_style


def test_the_ten_names_of_fal() -> None:
    assert list(STYLES) == [
        "(No style)", "Cinematic", "Photographic", "Anime", "Manga", "Digital Art", "Pixel art",
        "Fantasy art", "Neonpunk", "3D Model",
    ]  # fmt: skip


def test_every_template_has_one_place_for_the_prompt() -> None:
    assert {name: style.template.count("{prompt}") for name, style in STYLES.items()} == dict.fromkeys(STYLES, 1)


def test_no_style_leaves_both_texts_alone() -> None:
    assert apply_style("(No style)", " A {prompt} {x} ", "blurry") == (" A {prompt} {x} ", "blurry")


def test_a_style_wraps_the_prompt_and_leads_the_negative_prompt() -> None:
    prompt, negative = apply_style("3D Model", "a cat", "dogs")
    assert prompt == "professional 3d model a cat . octane render, highly detailed, volumetric, dramatic lighting"
    assert negative == "ugly, deformed, noisy, low poly, blurry, painting, dogs"


def test_without_a_negative_prompt_the_style_s_own_stands_alone() -> None:
    assert apply_style("Digital Art", "a cat", "")[1] == "photo, photorealistic, realism, ugly"


def test_braces_in_a_prompt_are_text() -> None:
    assert apply_style("Manga", "{0} {prompt}", "")[0].startswith("manga style {0} {prompt} . vibrant")
