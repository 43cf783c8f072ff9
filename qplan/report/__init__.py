"""Tables, figures and pages for people.

`write_report` makes the page and its Markdown; `qplan.report.figures` makes figures for notebooks and is imported by
name, because it needs matplotlib.
"""

from qplan.report.page import Provenance, render_html, render_markdown, write_report

__all__ = ["Provenance", "render_html", "render_markdown", "write_report"]
