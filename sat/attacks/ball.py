"""The eps-ball, which `sat.attacks.base` has."""

from sat.attacks.base import Ball

__all__ = ["Ball"]
