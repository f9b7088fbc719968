"""The strongest evaluation at hand: AutoAttack's standard ensemble, re-implemented for speed."""

from sat.attacks.strong.ensemble import ATTACKS, Strong

__all__ = ["ATTACKS", "Strong"]
