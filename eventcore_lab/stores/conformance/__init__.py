"""The conformance suite: `suite` has the machinery, `appends` and `reads` the claims. Importing this registers them all."""

from eventcore_lab.stores.conformance import appends as appends
from eventcore_lab.stores.conformance import reads as reads
from eventcore_lab.stores.conformance.suite import CLAIMS, Claim, Finding, NotKept, conformance, examined

__all__ = ["CLAIMS", "Claim", "Finding", "NotKept", "conformance", "examined"]
