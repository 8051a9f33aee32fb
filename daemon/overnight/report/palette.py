"""The colours of a report, for paper and for the dark: chosen once, mixed in OKLab, legible by calculation.

Scales step evenly to the eye (Ottosson 2020, "A perceptual color space for image processing"); the text on a step is
black or white, whichever stands out more (WCAG 2.2, relative luminance).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

STEPS = 11
"""Of a scale: 0 is the lowest value, STEPS - 1 the highest."""

LIGHT = {
    "paper": "#f7f5f0", "card": "#fffdfa", "shade": "#efece4", "rule": "#dcd6c9", "ink": "#1f2430", "soft": "#5a6170",
    "link": "#274a8f", "accent": "#a53c1c", "calm": "#3f6d9b", "hot": "#c03f22", "good": "#27684a", "warn": "#7d5200",
    "bad": "#a32536", "mark": "#fbe7b8", "used": "#95adca", "peak": "#d3deea",
}  # fmt: skip
DARK = {
    "paper": "#0f131b", "card": "#171c26", "shade": "#202736", "rule": "#2f3747", "ink": "#e8e5dd", "soft": "#a0a8b8",
    "link": "#a6bffa", "accent": "#f2a65a", "calm": "#7fb0de", "hot": "#ff8862", "good": "#7fcfa5", "warn": "#e8bd68",
    "bad": "#f58c92", "mark": "#4a3a16", "used": "#3f5d82", "peak": "#293a52",
}  # fmt: skip

SCALES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "collapsed": (
        ("#eef0ee", "#f6dfae", "#eeb06b", "#d9693f", "#a52a36", "#5d1236"),
        ("#222a36", "#4b3040", "#8a3648", "#cf5a45", "#f19a52", "#ffe0a3"),
    ),
    "vendi": (
        ("#eff1ea", "#bfe0cf", "#74bdb4", "#33899a", "#1f5a80", "#152f57"),
        ("#222a36", "#1d4258", "#236f85", "#3fa39e", "#8cd1ae", "#e6f7d2"),
    ),
    "turns": (
        ("#f0eef4", "#cfc5e6", "#a493d1", "#7660b5", "#4c388f", "#281a5c"),
        ("#232a38", "#3a3560", "#5c4f9a", "#8774c9", "#b7a4ea", "#ece3ff"),
    ),
}
"""What a map of cells can show -> stops for paper, stops for the dark."""

_DARK_TEXT, _LIGHT_TEXT = "#030406", "#ffffff"


def css() -> str:
    """Custom properties of both themes; the dark one on screens only, so that paper stays paper."""
    light, dark = _block(LIGHT, 0), _block(DARK, 1)
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n" + "".join(_step_rules())
    )


def _block(colours: dict[str, str], theme: int) -> str:
    parts = [f"--{name}:{value}" for name, value in colours.items()]
    for name, stops in SCALES.items():
        for step, colour in enumerate(scale(stops[theme])):
            parts.append(f"--{name}-{step}:{colour};--{name}-{step}t:{text_on(colour)}")
    return ";".join(parts)


def _step_rules() -> Iterator[str]:
    """Which value a cell shows hangs on the radio button that is checked: no script is needed for that."""
    for name in SCALES:
        for step in range(STEPS):
            yield (
                f".heat:has(#by-{name}:checked) .{name}-{step}"
                f"{{--b:var(--{name}-{step});--t:var(--{name}-{step}t)}}\n"
                f".sw-{name}-{step}{{background:var(--{name}-{step})}}\n"
                f".fill-{name}-{step}{{fill:var(--{name}-{step})}}\n"
            )


def scale(stops: Sequence[str], steps: int = STEPS) -> list[str]:
    """`steps` colours from the first stop to the last, evenly in OKLab between neighbouring stops."""
    labs = [_to_lab(stop) for stop in stops]
    found = []
    for step in range(steps):
        at = step / (steps - 1) * (len(labs) - 1)
        low = min(int(at), len(labs) - 2)
        share = at - low
        found.append(_from_lab([a + (b - a) * share for a, b in zip(labs[low], labs[low + 1], strict=True)]))
    return found


def text_on(colour: str) -> str:
    """Black or white: what is read better on `colour`."""
    return max((_DARK_TEXT, _LIGHT_TEXT), key=lambda text: contrast(text, colour))


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio, 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def step_of(value: float, lowest: float, highest: float) -> int:
    """Which step of a scale shows `value`."""
    if not highest > lowest:
        return 0
    share = (value - lowest) / (highest - lowest)
    return min(STEPS - 1, max(0, round(share * (STEPS - 1))))


def _luminance(colour: str) -> float:
    red, green, blue = _linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(colour: str) -> list[float]:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def _to_lab(colour: str) -> list[float]:
    r, g, b = _linear(colour)
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    middle = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return [
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    ]


def _from_lab(lab: Sequence[float]) -> str:
    light, a, b = lab
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    return "#" + "".join(f"{_byte(part):02x}" for part in linear)


def _byte(linear: float) -> int:
    bounded = min(1.0, max(0.0, linear))
    part = bounded * 12.92 if bounded <= 0.0031308 else 1.055 * bounded ** (1 / 2.4) - 0.055
    return round(part * 255)
