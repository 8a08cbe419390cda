"""Numbers with their nouns, for people."""


def counted(number: int, noun: str) -> str:
    """ "1 picture", "1,234 pictures", "2 classes"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")
