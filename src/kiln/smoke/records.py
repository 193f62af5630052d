"""What a smoke run found: findings, check results and the whole run's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kiln.errors import Finding

Tier = Literal["structural", "replay", "serve", "device", "full"]
Status = Literal["passed", "failed", "not_run"]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One check's outcome; `reason` says why a check was not run."""

    tier: Tier
    name: str
    status: Status
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class SmokeResult:
    """A whole run, bound to the digest of the image that was served; `started` is UTC in ISO 8601."""

    image: str
    puppet: str
    started: str
    seconds: float
    checks: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        """Say whether something was checked and nothing failed; a check that was not run counts for neither."""
        return bool(self.of("passed")) and not self.of("failed")

    def of(self, status: Status) -> tuple[CheckResult, ...]:
        """Return the checks with this status, in order."""
        return tuple(check for check in self.checks if check.status == status)
