"""Floor 0: how bytes, counts and durations are written for people. SI prefixes, so 80 GB is 80e9 bytes."""

from collections.abc import Sequence

_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_count(count: float) -> str:
    """7321423872 -> '7.32 G'."""
    for size, prefix in _SI:
        if abs(count) >= size:
            return f"{count / size:.3g} {prefix}"
    return f"{count:.3g}"


def format_bytes(num_bytes: float) -> str:
    """14642847744 -> '14.6 GB'."""
    text = format_count(num_bytes)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def format_seconds(seconds: float) -> str:
    """75 -> '1 min 15 s'; 0.0123 -> '12.3 ms'."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def one_of(choices: Sequence[object]) -> str:
    """[1, 2, 4] -> '1, 2 or 4'."""
    texts = [str(choice) for choice in choices]
    return " or ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def divisors(number: int) -> list[int]:
    """Of a positive number, rising."""
    return [n for n in range(1, number + 1) if number % n == 0]
