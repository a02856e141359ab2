"""Dose engines: programs that compute a dose from a beam's spots, all behind MOQUI's own contract."""
