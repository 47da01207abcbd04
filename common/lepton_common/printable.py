"""Texts of others, made fit for a terminal and for logs of lines."""


def printable(text: str) -> str:
    """Returns a text without what steers a terminal or begins a line: control characters."""
    return "".join(filter(str.isprintable, text))
