"""Which DICOM files show the same patient."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

from deblur_mae_jax.data import privacy, spelling
from deblur_mae_jax.data.dicom_file import Header


def patients(headers: list[Header], notes: list[str]) -> list[str]:
    """The patient of every file, hashed: the PatientID, or the study where it is empty or the same everywhere."""
    headers = _with_issuers(_one_spelling(headers, notes), notes)
    ids = {header.patient for header in headers if header.patient}
    studies = {header.study for header in headers}
    constant = len(ids) == 1 and len(studies) > 1
    if constant:
        notes.append(
            f"all {len(headers)} files have the same PatientID, so each of the {len(studies)} studies is taken as a "
            "patient; several studies of one person cannot be recognised"
        )
    empty = sum(not header.patient for header in headers)
    if empty:
        lost = sum(not header.patient and not header.study for header in headers)
        notes.append(
            f"files without a PatientID: {empty} (their study is taken as the patient"
            + (f"; without a study, {lost}, each file is)" if lost else ")")
        )
    keys = []
    for header in headers:
        own = header.patient if header.patient and not constant else ""
        keys.append(("patient", own) if own else ("study", header.study or header.sop or header.path))
    return numbered(keys)


def _one_spelling(headers: list[Header], notes: list[str]) -> list[Header]:
    """The headers with one spelling of each PatientID. The notes say how many there are, and name none."""
    said: list[str] = []
    names = spelling.one_patient([header.patient for header in headers], said)
    changed = {header.patient for header, name in zip(headers, names, strict=True) if header.patient != name}
    if changed:
        notes.append(f"{len(changed)} PatientIDs differ from another one in capitals or blanks alone: same patient")
    twice = next((line for line in said if "leading zeros" in line), "")
    if twice:
        notes.append(f"{twice.partition(':')[0]} (PatientID)")
    return [dataclasses.replace(header, patient=name) for header, name in zip(headers, names, strict=True)]


def _with_issuers(headers: list[Header], notes: list[str]) -> list[Header]:
    """The headers, with the issuer of a PatientID that only some files of it state also in the others."""
    issuers: dict[str, set[str]] = defaultdict(set)
    for header in headers:
        number, _, issuer = header.patient.rpartition("|")
        issuers[number].add(issuer)
    partly = {number: sorted(known - {""}) for number, known in issuers.items() if number and "" in known}
    one = {number: known[0] for number, known in partly.items() if len(known) == 1}
    several = sum(len(known) > 1 for known in partly.values())
    if one:
        notes.append(
            f"{len(one)} PatientIDs have an IssuerOfPatientID in some files only; the files without are taken as the "
            "same patient"
        )
    if several:
        notes.append(
            f"{several} PatientIDs have several issuers, and none in some files, which are taken as another patient: "
            "state the patients in a CSV (config.data.labels) if they are not"
        )
    out = []
    for header in headers:
        number, _, issuer = header.patient.rpartition("|")
        if number in one and not issuer:
            header = dataclasses.replace(header, patient=f"{number}|{one[number]}")
        out.append(header)
    return out


def numbered(keys: Sequence[tuple[str, str]]) -> list[str]:
    """Names of patients: a number in the order of the files, and a hash.

    Splits depend on the order of the names, so the hash, whose key differs between workdirs, must not decide it.
    """
    first = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [f"patient_{first[key]:06d}_{privacy.pseudonym(*key)}" for key in keys]
