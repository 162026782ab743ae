"""The shop of the fault tests, here under web servers; and the examples of the documentation."""

from tests.e2e.examples import load
from tests.faults.conftest import ledger, shop

__all__ = ["ledger", "load", "shop"]
