"""Values of text annotations, or an error that names the field."""


def parse_number(text: str | None, field: str, *, where: str) -> float:
    """A number as written; `nan` and `inf` pass, the check of the boxes finds them.

    Raises:
        ValueError: if the field is missing or is no number.
    """
    text = (text or "").strip()
    if not text:
        raise ValueError(f"{where}: has no {field}; add it, or remove the entry")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: {field} is '{text}', not a number; correct it, or remove the entry") from None


def parse_flag(text: str | None, field: str, *, where: str) -> bool:
    """0 or 1; missing means 0.

    Raises:
        ValueError: if it is anything else.
    """
    text = (text or "").strip() or "0"
    if text not in ("0", "1"):
        raise ValueError(f"{where}: {field} is '{text}'; write 0 or 1")
    return text == "1"
