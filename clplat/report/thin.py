"""Long curves as short ones that look the same."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 1000  # points: more than a screen has columns to show them in

Curve = tuple[list[float], list[float | None]]


def thin(x: Sequence[float], y: Sequence[float | None], most: int = MOST) -> Curve:
    """At most ``most`` points of a curve (and its last): of each of equally long pieces the lowest and the highest, in
    their order, so that no peak is lost. A piece without a value is a gap."""
    if len(x) <= most:
        return list(x), list(y)
    pieces = most // 2
    kept: list[int] = []
    for piece in range(pieces):
        begin, end = piece * len(x) // pieces, (piece + 1) * len(x) // pieces
        known = [(value, i) for i in range(begin, end) if (value := y[i]) is not None]
        kept += sorted({min(known)[1], max(known)[1]}) if known else [begin]
    if kept[-1] != len(x) - 1:
        kept.append(len(x) - 1)
    return [x[i] for i in kept], [y[i] for i in kept]
