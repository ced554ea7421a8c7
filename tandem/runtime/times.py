"""The times of the protocol and the order they must stand in (design §2, "Times")."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.runtime.errors import ConfigurationError

DAY_S = 86_400

MAX_RETENTION_S = 36_500 * DAY_S
"""A hundred years: what the statements can count with, and longer than anybody will ask."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds. `prepare_deadline + block_timeout` is the driver's deadline; it must end before anybody pushes."""

    prepare_deadline_s: float = 2.0
    block_timeout_s: float = 5.0
    push_after_s: float = 8.0
    ttl_s: float = 60.0
    retention_s: float = 30 * DAY_S

    @property
    def driver_deadline_s(self) -> float:
        """When the driver gives up, counted from its first call."""
        return self.prepare_deadline_s + self.block_timeout_s

    @property
    def retention_ms(self) -> int:
        """Retention in ms, as the statements want it."""
        return int(self.retention_s * 1000)

    def check(self) -> Times:
        """Itself, if the order holds. Raises ConfigurationError with the sentence that names what doesn't fit."""
        if min(self.prepare_deadline_s, self.block_timeout_s) <= 0:
            raise ConfigurationError("prepare_deadline and block_timeout must be above 0 s")
        if not self.driver_deadline_s < self.push_after_s:
            raise ConfigurationError(
                f"prepare_deadline {self.prepare_deadline_s:g} s + block_timeout {self.block_timeout_s:g} s = "
                f"{self.driver_deadline_s:g} s must be below push_after {self.push_after_s:g} s"
            )
        if not self.push_after_s < self.ttl_s:
            raise ConfigurationError(f"push_after {self.push_after_s:g} s must be below ttl {self.ttl_s:g} s")
        if not 10 <= self.ttl_s <= DAY_S:
            raise ConfigurationError(f"ttl {self.ttl_s:g} s must be from 10 s to 1 day")
        if not 4 * DAY_S <= self.retention_s <= MAX_RETENTION_S:
            raise ConfigurationError(
                f"retention {self.retention_s / DAY_S:g} days must be at least 4 days, and at most"
                f" {MAX_RETENTION_S / DAY_S:g}"
            )
        return self
