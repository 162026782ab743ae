"""The shop of the fault tests, here under web servers."""

from tests.faults.conftest import ledger, shop

__all__ = ["ledger", "shop"]
