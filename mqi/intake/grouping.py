"""Which deliveries make a fraction, and what a fraction still waits for.

Deliveries are taken in the order of their irradiation. A fraction takes them until one repeats layers
that the fraction has already. Was there a pause of more than the session gap before it, a new fraction
begins (the old one stays, waiting for what it lacks). Within the session nobody can know which of the
two counts: the fraction waits for a person to choose. An interrupted delivery and its resumption repeat
at most the layer at which the beam stopped, and so make one beam together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mqi.case import Delivery, Frozen

__all__ = ["Arriving", "FractionLook", "chosen_fraction", "fractions_of", "layer_spans"]


class FractionLook(Frozen):
    """A fraction as it is found: what it consists of, whether it is whole, and if not, why.

    ``fraction_id`` is the id of its first delivery, ``number`` counts the case's fractions from 1. A case
    that has problems has no whole fraction, whatever has arrived.
    ``warnings`` hinder nothing but must be seen (a beam that was interrupted and resumed).
    """

    fraction_id: str
    number: int
    deliveries: tuple[Delivery, ...]
    whole: bool
    waiting_for: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class Arriving(Frozen):
    """A timestamp folder that cannot be read as a delivery yet: its beam is not known, only its time."""

    id: str
    at: datetime
    waiting_for: str


@dataclass
class _Group:
    """A fraction while it is put together. ``repeats`` are deliveries of layers that it has already."""

    deliveries: list[Delivery]
    repeats: list[Delivery]
    arriving: list[Arriving]

    @property
    def times(self) -> list[datetime]:
        return [d.irradiated_at for d in self.deliveries] + [a.at for a in self.arriving]

    def covered(self, beam: int) -> set[int]:
        return {n for d in self.deliveries if d.beam_number == beam for n in _layers(d)}

    def is_repeated_by(self, delivery: Delivery) -> bool:
        """A resumption may begin with the layer at which the beam stopped; anything more is a repeat."""
        again = self.covered(delivery.beam_number) & _layers(delivery)
        return bool(again) and (again != {delivery.start_layer} or again == _layers(delivery))


def fractions_of(
    deliveries: Iterable[Delivery],
    arriving: Iterable[Arriving],
    *,
    layer_counts: Mapping[int, int],
    gap_h: float,
    lacking: Mapping[str, Sequence[str]],
) -> tuple[FractionLook, ...]:
    """Group a case's deliveries into fractions.

    Parameters
    ----------
    layer_counts
        Layers of each treatment beam of the plan, by DICOM beam number.
    gap_h
        Pause in hours after which a repeated beam begins a new fraction.
    lacking
        What each delivery, by its id, still lacks ("layer 12 has 0 bytes").

    Returns
    -------
    The fractions by time. The same for any order in which the deliveries are given.
    """
    groups = _with_arriving(_grouped(deliveries, gap_h), arriving, gap_h)
    return tuple(
        _fraction(group, _id_of(group), number, layer_counts, lacking)
        for number, group in enumerate(sorted(groups, key=lambda g: min(g.times)), start=1)
    )


def chosen_fraction(
    deliveries: Iterable[Delivery],
    chosen: Iterable[str],
    *,
    layer_counts: Mapping[int, int],
    gap_h: float,
    lacking: Mapping[str, Sequence[str]],
) -> FractionLook:
    """Make one fraction of exactly those deliveries that a person chose; all ids must be among them.

    It keeps the id and number of the fraction to which all of them belong by themselves, so that the
    choice settles that fraction; of several fractions it becomes one of its own, under its first
    delivery. What is chosen counts: layers delivered twice are summed, and a warning says so.
    """
    wanted = set(chosen)
    every = tuple(deliveries)
    taken = _in_time(d for d in every if d.id in wanted)
    group = _Group(deliveries=taken, repeats=[], arriving=[])
    natural = _grouped(every, gap_h)
    number = 1 + next(i for i, g in enumerate(natural) if taken[0] in g.deliveries + g.repeats)
    home = natural[number - 1]
    own_id = home if all(d in home.deliveries + home.repeats for d in taken) else group
    return _fraction(group, _id_of(own_id), number, layer_counts, lacking)


def layer_spans(numbers: Iterable[int]) -> str:
    """Write layer numbers as a person would.

    >>> layer_spans({1, 2, 3, 7})
    'layers 1-3, 7'
    """
    ordered = sorted(numbers)
    spans: list[list[int]] = []
    for number in ordered:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"{'layer' if len(ordered) == 1 else 'layers'} {text}"


def _layers(delivery: Delivery) -> set[int]:
    return set(range(delivery.start_layer, delivery.stop_layer + 1))


def _in_time(deliveries: Iterable[Delivery]) -> list[Delivery]:
    return sorted(deliveries, key=lambda d: (d.irradiated_at, d.id))


def _grouped(deliveries: Iterable[Delivery], gap_h: float) -> list[_Group]:
    groups: list[_Group] = []
    for delivery in _in_time(deliveries):
        current = groups[-1] if groups else None
        if current is None:
            groups.append(_Group([delivery], [], []))
            continue
        previous = max(d.irradiated_at for d in current.deliveries + current.repeats)
        if not current.is_repeated_by(delivery):
            current.deliveries.append(delivery)
        elif delivery.irradiated_at - previous > timedelta(hours=gap_h):
            groups.append(_Group([delivery], [], []))
        else:
            current.repeats.append(delivery)
    return groups


def _with_arriving(groups: list[_Group], arriving: Iterable[Arriving], gap_h: float) -> list[_Group]:
    """Let the fraction wait that a half-arrived delivery may belong to; if none is near, it begins one."""
    gap = timedelta(hours=gap_h)
    for one in sorted(arriving, key=lambda a: (a.at, a.id)):
        distances = [(min(abs(one.at - t) for t in group.times), group) for group in groups]
        distance, nearest = min(distances, key=lambda pair: pair[0], default=(gap * 2, None))
        if nearest is not None and distance <= gap:
            nearest.arriving.append(one)
        else:
            groups.append(_Group([], [], [one]))
    return groups


def _id_of(group: _Group) -> str:
    deliveries = _in_time(group.deliveries + group.repeats)
    return deliveries[0].id if deliveries else min(a.id for a in group.arriving)


def _fraction(
    group: _Group,
    fraction_id: str,
    number: int,
    layer_counts: Mapping[int, int],
    lacking: Mapping[str, Sequence[str]],
) -> FractionLook:
    everything = _in_time(group.deliveries + group.repeats)
    of_beam: dict[int, list[Delivery]] = defaultdict(list)
    for delivery in group.deliveries:
        of_beam[delivery.beam_number].append(delivery)
    waiting: list[str] = []
    warnings: list[str] = []
    for beam, layer_count in sorted(layer_counts.items()):
        missing = set(range(1, layer_count + 1)) - group.covered(beam)
        repeats = [d for d in group.repeats if d.beam_number == beam]
        if beam not in of_beam:
            waiting.append(f"beam {beam} not delivered")
        elif missing:
            waiting.append(f"beam {beam}: {layer_spans(missing)} not delivered")
        if repeats:
            waiting.append(_choice(beam, of_beam[beam] + repeats, whole=not missing))
        for delivery in of_beam[beam] + repeats:
            waiting.extend(f"beam {beam}: {what}" for what in lacking.get(delivery.id, ()))
        warnings.extend(_joined(beam, of_beam[beam]))
    waiting.extend(f"delivery {one.id}: {one.waiting_for}" for one in group.arriving)
    return FractionLook(
        fraction_id=fraction_id,
        number=number,
        deliveries=tuple(everything),
        whole=not waiting,
        waiting_for=tuple(waiting),
        warnings=tuple(warnings),
    )


def _choice(beam: int, deliveries: Sequence[Delivery], *, whole: bool) -> str:
    times = "twice" if len(deliveries) == 2 else f"{len(deliveries)} times"
    what = f"beam {beam} was delivered {times}" if whole else f"layers of beam {beam} were delivered {times}"
    ids = ", ".join(d.id for d in _in_time(deliveries))
    return f"{what} ({ids}): choose with deliveries=[...]"


def _joined(beam: int, deliveries: Sequence[Delivery]) -> list[str]:
    """Say that a beam was put together from several deliveries, and which layers then count twice."""
    if len(deliveries) < 2:
        return []
    ordered = _in_time(deliveries)
    ids = ", ".join(d.id for d in ordered)
    warnings = [f"beam {beam} was delivered in {len(ordered)} parts ({ids})"]
    seen: set[int] = set()
    twice: set[int] = set()
    for delivery in ordered:
        twice |= seen & _layers(delivery)
        seen |= _layers(delivery)
    if twice:
        warnings.append(f"beam {beam}: {layer_spans(twice)} delivered more than once, all of it is counted")
    return warnings
