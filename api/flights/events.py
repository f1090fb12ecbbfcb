"""What goes amiss with flights; a subclass counts."""

from __future__ import annotations


class FlightEvents:
    """Does nothing."""

    def handed_over(self) -> None:
        """A leader was lost or left, and this worker took the lead."""

    def alone(self) -> None:
        """This worker waited for a leader in vain, or lost Redis meanwhile, and generates for itself."""

    def fenced(self) -> None:
        """This worker lost a lead that it thought it had: its answer is its own callers' only."""
