"""Standardised uptake values (SUV) of PET by body weight, from the fields of the header and never by assumption."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

from deblur_mae_jax.data.source import BadImage

# Less than any dose that is given; a number below it is in MBq or mCi.
LEAST_DOSE = 1e5
_TIME = re.compile(r"(\d{8})(\d{2})(?::?(\d{2}))?(?::?(\d{2}))?(?:\.\d*)?([+-]\d{4})?")
_ZONE = re.compile(r"[+-]\d{4}")
NOTE = "PET is read as standardised uptake values by body weight, on which config.data.window acts"


def factor(values: Any, transform: Any) -> float:
    """What turns Bq/ml into g/ml: `weight / dose at the time to which the decay was corrected`.

    values: the header.
    transform: the data set with the rescaling, which may state the units.
    Raises `BadImage` that names the field that is missing or has another value than is needed.
    """
    units = str(transform.get("RescaleType", "") or "")
    if "BQML" not in (str(values.get("Units", "") or "").upper(), units.upper()):
        raise BadImage(f"PET in units '{values.get('Units', '') or 'not stated'}': SUV needs Units BQML")
    corrected = {str(kind).upper() for kind in _listed(values.get("CorrectedImage", None))}
    if not {"ATTN", "DECY"} <= corrected:
        raise BadImage("PET without the corrections ATTN and DECY in CorrectedImage has no SUV")
    agents = values.get("RadiopharmaceuticalInformationSequence", None) or []
    if len(agents) != 1:
        raise BadImage(f"PET with {len(agents)} items in RadiopharmaceuticalInformationSequence has no SUV")
    weight = _number(values, "PatientWeight") * 1000
    dose, half_life = _number(agents[0], "RadionuclideTotalDose"), _number(agents[0], "RadionuclideHalfLife")
    if dose < LEAST_DOSE:
        raise BadImage(f"PET with RadionuclideTotalDose {dose:g}, which must be in Bq, not MBq, has no SUV")
    reference = str(values.get("DecayCorrection", "") or "").upper()
    if reference == "ADMIN":  # corrected to the time of the injection
        return weight / dose
    if reference != "START":
        raise BadImage(f"PET with DecayCorrection '{reference or 'not stated'}' has no SUV; it must be START or ADMIN")
    start = _time(values, "SeriesDate", "SeriesTime")
    if start > _time(values, "AcquisitionDate", "AcquisitionTime"):
        raise BadImage("PET whose SeriesTime is after AcquisitionTime was made from other series, and has no SUV")
    injected = agents[0].get("RadiopharmaceuticalStartDateTime", None)
    if injected:
        zone = str(values.get("TimezoneOffsetFromUTC", "") or "").strip()
        given = _parsed(str(injected), "RadiopharmaceuticalStartDateTime", zone)
    else:
        given = _parsed(
            str(values.get("SeriesDate", "")) + _text(agents[0], "RadiopharmaceuticalStartTime"),
            "RadiopharmaceuticalStartTime",
        )
    seconds = (start - given).total_seconds()
    if not 0 <= seconds < 24 * 3600:
        raise BadImage(f"PET that starts {seconds:.0f} s after the injection has no SUV")
    return float(weight / (dose * 2 ** (-seconds / half_life)))


def _listed(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _text(values: Any, name: str) -> str:
    text = str(values.get(name, "") or "").strip()
    if not text:
        raise BadImage(f"PET without {name} has no SUV")
    return text


def _number(values: Any, name: str) -> float:
    number = float(_text(values, name))
    if not number > 0:
        raise BadImage(f"PET with {name} {number:g} has no SUV")
    return number


def _time(values: Any, date: str, time: str) -> datetime:
    return _parsed(_text(values, date) + _text(values, time), time)


def _parsed(text: str, name: str, zone: str = "") -> datetime:
    """A date and time such as 20260131120000.000+0100, in the zone of the file. Minutes and seconds may be missing.

    zone: `TimezoneOffsetFromUTC` of the file, "" if it states none.
    """
    found = _TIME.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError(text)
        date, hour, minute, second, own = found.groups()
        given = datetime.strptime(date + hour + (minute or "00") + (second or "00"), "%Y%m%d%H%M%S")
    except ValueError as error:
        raise BadImage(f"PET with {name} that is no time has no SUV") from error
    if not own or own == zone:
        return given
    if not _ZONE.fullmatch(zone):
        raise BadImage(f"PET with {name} in the zone {own} has no SUV: TimezoneOffsetFromUTC does not state the file's")
    return given - _offset(own) + _offset(zone)


def _offset(zone: str) -> timedelta:
    """The difference of a zone such as +0100 from UTC."""
    hours = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))
    return -hours if zone[0] == "-" else hours
