"""Colours that differ in lightness as well, so that a picture says the same printed in black and white."""

# Lines differ in dash too. From the colour map viridis, without its lightest end.
LINES = (
    {"color": "#440154", "linestyle": "-"},
    {"color": "#31688e", "linestyle": "--"},
    {"color": "#35b779", "linestyle": "-."},
    {"color": "#90a818", "linestyle": ":"},
    {"color": "#7a7a7a", "linestyle": (0, (6, 1, 1, 1, 1, 1))},
)
MAP = "viridis"  # its lightness grows with the value
