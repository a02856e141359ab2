"""Which folders are cases, which of their fractions are whole, and if not, what is missing.

``find_case_folders`` finds, ``look`` judges by sizes and headers, ``freeze`` hashes what was accepted.
"""

from mqi.intake.companions import Companions
from mqi.intake.finding import find_case_folders, is_case_folder, resolved_root
from mqi.intake.freezing import freeze
from mqi.intake.grouping import Arriving, FractionLook, chosen_fraction, fractions_of
from mqi.intake.looking import CaseLook, is_settled, look, looks, signature_of
from mqi.intake.rules import IntakeRules

__all__ = [
    "Arriving",
    "CaseLook",
    "Companions",
    "FractionLook",
    "IntakeRules",
    "chosen_fraction",
    "find_case_folders",
    "fractions_of",
    "freeze",
    "is_case_folder",
    "is_settled",
    "look",
    "looks",
    "resolved_root",
    "signature_of",
]
