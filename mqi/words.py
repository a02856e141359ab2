"""All words of the report in one place, so that a second language is a second dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mqi.case import Verdict

__all__ = ["VERDICT_NOTES", "VERDICT_SYMBOLS", "VERDICT_WORDS", "WORDS"]

VERDICT_WORDS: Final[Mapping[Verdict, str]] = {
    Verdict.PASS: "PASS",
    Verdict.ACTION: "ACTION",
    Verdict.FAIL: "FAIL",
    Verdict.NOT_EVALUABLE: "NOT EVALUABLE",
}

VERDICT_SYMBOLS: Final[Mapping[Verdict, str]] = {
    Verdict.PASS: "✓",
    Verdict.ACTION: "!",
    Verdict.FAIL: "✗",
    Verdict.NOT_EVALUABLE: "?",
}

VERDICT_NOTES: Final[Mapping[Verdict, str]] = {
    Verdict.PASS: "All measures are within tolerance.",
    Verdict.ACTION: "Beyond tolerance, within the action limit: a physicist has to look.",
    Verdict.FAIL: "Beyond the action limit.",
    Verdict.NOT_EVALUABLE: "Not everything could be judged. This is not a pass.",
}

WORDS: Final[Mapping[str, str]] = {
    "title": "Patient QA report: dose from the machine's log",
    "not_clinical": "Not for clinical use: computed with the analytic engine",
    "not_clinical_why": "The embedded pencil-beam model shows that the path works from end to end. "
    "It is no clinical dose engine.",
    "why": "Why",
    "more_reasons": "{count} more: see the beams below.",
    "beams": "Beams",
    "beam": "Beam",
    "all_beams": "All beams",
    "verdict": "Verdict",
    "not_computed": "no dose",
    "nothing": "–",
    # identity
    "case": "Case",
    "report": "Report",
    "patient_id": "Patient ID",
    "plan": "Plan",
    "plan_uid": "Plan UID",
    "fraction": "Fraction",
    "machine": "Machine",
    "irradiated_at": "Irradiated",
    "machine_clock": "machine clock",
    "generated_at": "Report written",
    "engine": "Dose engine",
    "calibration": "Calibration",
    # summary table
    "gamma_plan": "γ log vs plan",
    "gamma_tps": "γ log vs TPS",
    "gamma_plan_short": "γ plan",
    "gamma_tps_short": "γ TPS",
    "beam_mu": "Beam MU",
    "layer_mu": "Worst layer MU",
    "position": "Spot position, worst layer",
    "position_cell": "{axis}\u00a0{mean:+.2f}\u00a0mm, max\u00a0{maximum:.2f} ({layer})",
    "in_layer": "layer\u00a0{number}",
    "summary_note": "γ: share of points with γ ≤ 1. Log vs plan: both doses through the same engine. "
    "TPS: the planning system's dose. "
    "MU and positions: delivered minus planned; position is the mean of the layer, and its furthest spot.",
    # beam details
    "layers": "Layers",
    "layer": "Layer",
    "energy": "MeV",
    "planned_mu": "planned MU",
    "delivered_mu": "delivered MU",
    "deviation": "dev. %",
    "monitor_ratio": "monitor 2/1",
    "spots": "spots",
    "x_mean": "x mean mm",
    "x_sd": "x sd mm",
    "y_mean": "y mean mm",
    "y_sd": "y sd mm",
    "max_mm": "max mm",
    "gammas": "Gamma",
    "against": "Against",
    "pass_rate": "points with γ ≤ 1",
    "points": "points",
    "mean": "mean γ",
    "maximum": "max γ",
    "reference_max": "reference max Gy",
    "evaluated_max": "log max Gy",
    "criterion": "criterion",
    "account": "Monitor counts",
    "account_note": "Every count of the log stands in one of these. Only what was delivered "
    "went into the dose.",
    "account_delivered": "delivered, MU",
    "account_parked": "of it with position registers parked, MU",
    "account_transition": "at switching on and off, MU",
    "account_tail": "after beam off, MU",
    "account_idle": "before beam on, MU",
    # back matter
    "details": "What the verdict rests on",
    "criteria": "Criteria",
    "assumptions": "Assumed",
    "not_evaluated": "Not evaluated",
    "warnings": "Warnings",
    "computing": "How it was computed",
    "version": "version",
    "seed": "Seed",
    "no_seed": "none",
    "software": "MQI Communicator",
    "provenance": "Files (SHA-256)",
    "inputs": "In",
    "outputs": "Out",
    "criteria_gamma": "Gamma",
    "criteria_gamma_limits": "Gamma pass rate",
    "criteria_position": "Spot position, per layer",
    "criteria_layer_mu": "Layer meterset",
    "criteria_beam_mu": "Beam meterset",
    "criteria_gamma_how": "points above {threshold:g} % of the maximum, {steps} steps per distance",
    "criteria_floor": "at most {mu:g} MU always tolerated",
    "limit_mean": "mean",
    "limit_sd": "standard deviation",
    "limit_max": "one spot",
    "criteria_note": "First the tolerance, then the action limit (AAPM TG-218).",
    "global": "global",
    "local": "local",
    # signature
    "signature": "Reviewed",
    "signature_name": "Name",
    "signature_date": "Date",
    "signature_sign": "Signature",
    "page_of": "page {page} of {pages}",
    # pictures
    "pic_dose_log": "dose from the log / Gy",
    "pic_log": "log",
    "pic_tps": "TPS",
    "pic_plan": "plan",
    "pic_along": "Along the beam",
    "pic_dose": "dose / Gy",
    "pic_from_isocentre": "from the isocentre / mm",
    "pic_across_x": "Across the beam, x",
    "pic_across_y": "Across the beam, y",
    "pic_largest": "Largest distance of a spot from its place",
    "pic_layer_mu": "Meterset, delivered minus planned",
    "pic_mean_sd": "{axis}: mean of each layer ± standard deviation",
    "pic_places": "Layer {number} ({energy:.1f} MeV), planned places",
    "pic_distance": "distance from plan / mm",
    "pic_others": "other layers",
    "pic_cloud": "Deviation of each spot",
    "pic_times": "Beam on, layer by layer",
    "pic_deliveries": " ({count} deliveries, one colour each)",
    "pic_seconds": "seconds since the first beam on",
    "pic_layer": "layer",
    "pic_cloud_x": "x, delivered minus planned / mm",
    "pic_overview": "Overview",
    "pic_overview_how": "Dose from the log, gamma, depth profile, mean spot position of each layer.",
    "pic_along_gy": "Along the beam / Gy",
    "pic_mean_mm": "Mean {axis} of each layer / mm",
    "pic_at_isocentre": "the isocentre",
    "pic_at_maximum": "the dose maximum (the isocentre gets less than half of it)",
    "pic_planes": "Dose and gamma",
    "pic_planes_how": "Planes through {place}; the cross is the isocentre. Above: dose from the log; isodose "
    "lines in percent of the planned maximum, log solid, plan dashed. Below: gamma against "
    "the plan through the same engine; blue is within the criterion, red is beyond it, white "
    "was not evaluated. {worst}",
    "pic_profiles": "Profiles",
    "pic_profiles_how": "Through {place}.",
    "pic_layers": "Layers",
    "pic_layers_how": "Dashed: tolerance. Solid: action limit. Layers beyond are coloured and numbered.",
    "pic_spots": "Spots of the layer furthest from the plan",
    "pic_spots_how": "Left: planned places, coloured by the distance at which the spot was delivered. Right: "
    "every spot's deviation, with tolerance (dashed) and action limit (solid).",
    "pic_timeline": "Time line",
    "pic_timeline_how": "A long gap is an interruption.",
    "pic_no_gamma": "No point was evaluated.",
    "pic_worst_gamma": "The largest gamma, {value:.2f}, is at ({x:+.0f}, {y:+.0f}, {z:+.0f}) mm from the "
    "isocentre (patient x, y, z).",
}
