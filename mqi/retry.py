"""When a step that failed is tried again (specification, section 7.2)."""

from pydantic import Field

from mqi.case import Frozen

__all__ = ["RetryPolicy"]


class RetryPolicy(Frozen):
    """Exponential back-off: connection, transfer and resource errors are tried again, others are not."""

    max_attempts: int = Field(default=3, ge=1, le=20, description="Attempts in all, the first included.")
    base_delay_s: float = Field(default=1.0, gt=0, description="Pause before the second attempt, s.")
    exponential_base: float = Field(
        default=2.0, ge=1, description="Each further pause is longer by this factor."
    )
    max_delay_s: float = Field(default=60.0, gt=0, description="No pause is longer than this, s.")

    def delays_s(self) -> list[float]:
        """Pauses before the second, third, ... attempt, s.

        >>> RetryPolicy().delays_s()
        [1.0, 2.0]
        """
        return [
            min(self.max_delay_s, self.base_delay_s * self.exponential_base**n)
            for n in range(self.max_attempts - 1)
        ]
