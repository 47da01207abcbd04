"""A page of text as PDF, the same bytes for the same text."""

import io
import textwrap

from matplotlib import rc_context
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

_A4_INCHES = (8.27, 11.69)
_TOP, _BOTTOM, _LEFT, _LINE = 0.95, 0.06, 0.08, 0.0165
_BLACK, _BLUE, _RED = "#1c2733", "#1f5fa8", "#c0392b"


def draw_pdf(title: str, statement: str, sections: dict[str, list[str]], *, red: bool) -> bytes:
    """Returns a PDF of A4 pages: a title, a statement, and paragraphs under headings."""
    lines = [(part, 13.0, _BLACK) for part in textwrap.wrap(title, 62)]
    lines += [("", 9.0, _BLACK)]
    lines += [(part, 10.0, _RED if red else _BLUE) for part in textwrap.wrap(statement, 95)]
    for heading, paragraphs in sections.items():
        lines += [("", 9.0, _BLACK), (heading, 11.0, _BLACK)]
        for paragraph in paragraphs:
            lines += [(part, 9.0, _BLACK) for part in textwrap.wrap(paragraph, 100)]
    made = io.BytesIO()
    undated = {"CreationDate": None, "Title": title}
    # Text stays text: a person can search and copy it. A dollar sign is one, and no formula.
    with rc_context({"pdf.fonttype": 42}), PdfPages(made, metadata=undated) as document:
        for page in _pages(lines):
            document.savefig(page)
    return made.getvalue()


def _pages(lines: list[tuple[str, float, str]]) -> list[Figure]:
    pages = [Figure(figsize=_A4_INCHES)]
    at = _TOP
    for text, size, color in lines:
        if at < _BOTTOM:
            pages.append(Figure(figsize=_A4_INCHES))
            at = _TOP
        pages[-1].text(_LEFT, at, text, fontsize=size, color=color, va="top", parse_math=False)
        at -= _LINE * size / 9.0
    return pages
