"""The look of plots and reports: colours by name, for a light page and for a dark one, and matplotlib's settings.

The series' colours start from Okabe and Ito's (2008) and are moved until every two of them stay at least 20 apart in
CIELAB for trichromats and for each of the three dichromacies, on both papers.
"""

from typing import Any

LIGHT = {
    "paper": "#fdfdfc",
    "ink": "#1c2024",
    "soft": "#60656d",
    "rule": "#dfe2e6",
    "c1": "#145a9a",
    "c2": "#c54716",
    "c3": "#00b65b",
    "c4": "#a65f85",
    "c5": "#db9405",
    "c6": "#628af0",
}
"""Colours of the light theme by name; a figure's colours of these values follow the page's theme."""

DARK = {
    "paper": "#15181b",
    "ink": "#e6e8ea",
    "soft": "#9aa1a9",
    "rule": "#31363c",
    "c1": "#5b8ed0",
    "c2": "#f26e4a",
    "c3": "#20d783",
    "c4": "#cc9cac",
    "c5": "#fba428",
    "c6": "#a1cffa",
}
"""The same names for the dark theme."""

WIDTH = 4.9
"""A figure's width in inches: narrow, so that its words can still be read when a phone scales it down."""

RC: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LIGHT["soft"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.8,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "figure.facecolor": LIGHT["paper"],
    "axes.facecolor": "none",
    "figure.dpi": 100,
}
"""Settings for `matplotlib.rc_context`."""
