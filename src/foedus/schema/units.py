"""Which other unit a column may be in: the units that are mistaken for one another, and plain powers of ten.
Only names and factors; nothing of the data."""

from __future__ import annotations

from typing import NamedTuple

# quantity -> unit -> how many of the quantity's base unit it is
QUANTITIES = {
    "time": {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0, "weeks": 604800.0, "months": 2629746.0,
             "years": 31556952.0},
    "length": {"mm": 0.1, "cm": 1.0, "inches": 2.54, "ft": 30.48, "m": 100.0},
    "mass": {"mg": 1e-3, "g": 1.0, "lb": 453.59237, "kg": 1000.0},
    "pressure": {"mmHg": 1.0, "cmHg": 10.0, "kPa": 7.500617},
    "share": {"%": 0.01, "share": 1.0},
    # mmol/l by molar mass: 386.65, 885.4 and 180.16 g/mol; µmol/l of creatinine: 113.12 g/mol
    "cholesterol": {"mg/dl": 1.0, "mmol/l": 38.665},
    "triglycerides": {"mg/dl": 1.0, "mmol/l": 88.54},
    "glucose": {"mg/dl": 1.0, "mmol/l": 18.016},
    "creatinine": {"mg/dl": 1.0, "µmol/l": 0.011312},
    "mass in volume": {"mg/l": 0.1, "mg/dl": 1.0, "g/l": 100.0, "g/dl": 1000.0},
}  # fmt: skip
TEMPERATURES = {"celsius": (1.0, 0.0), "fahrenheit": (5 / 9, -160 / 9), "kelvin": (1.0, -273.15)}
SAME = {
    "year": "years", "month": "months", "week": "weeks", "day": "days", "hour": "hours", "h": "hours",
    "minute": "minutes", "min": "minutes", "second": "seconds", "s": "seconds", "in": "inches", "percent": "%",
    "fraction": "share", "°c": "celsius", "°f": "fahrenheit", "k": "kelvin",
}  # fmt: skip
POWERS = (10.0, 0.1, 100.0, 0.01, 1e3, 1e-3, 1e6, 1e-6)


class Conversion(NamedTuple):
    """`unit` ("": a power of ten) of a quantity into the unit that is asked for: value · scale + offset."""

    unit: str
    of: str
    scale: float
    offset: float = 0.0


def conversions(unit: str) -> tuple[Conversion, ...]:
    """What may turn values of another unit into `unit`, the named units before the powers of ten."""
    wanted = _known(unit)
    found = [Conversion(*item) for item in _temperatures(wanted)]
    for of, units in QUANTITIES.items():
        scales = {_known(name): scale for name, scale in units.items()}
        if wanted in scales:
            found += [Conversion(name, of, s / scales[wanted]) for name, s in units.items() if _known(name) != wanted]
    return (*found, *(Conversion("", "", power) for power in POWERS))


def _temperatures(wanted: str) -> list[tuple[str, str, float, float]]:
    scale, offset = TEMPERATURES.get(wanted, (0.0, 0.0))
    if not scale:
        return []
    return [(u, "temperature", s / scale, (o - offset) / scale) for u, (s, o) in TEMPERATURES.items() if u != wanted]


def _known(unit: str) -> str:
    name = unit.strip().casefold().replace("µ".casefold(), "u")
    return SAME.get(name, name)
