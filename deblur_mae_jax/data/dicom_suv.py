"""Standardised uptake values (SUV) of PET by body weight, from the fields of the header and never by assumption."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from deblur_mae_jax.data.source import BadImage

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
        given = _parsed(str(injected), "RadiopharmaceuticalStartDateTime")
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


def _parsed(text: str, name: str) -> datetime:
    """A date and time such as 20260131120000.000+0100; the zone is that of all times of the file."""
    try:
        return datetime.strptime(text[:14].split(".")[0], "%Y%m%d%H%M%S")
    except ValueError as error:
        raise BadImage(f"PET with {name} that is no time has no SUV") from error
