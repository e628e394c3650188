"""The section ``limits`` of `site.json`: what a site allows jobs to ask of it."""

from typing import Annotated

from pydantic import Field

from pt_peft.errors import OutsideLimits
from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.experiment import Experiment
from pt_peft.schema import Strict


class Limits(Strict):
    """Bounds on jobs; a field that is null allows anything."""

    methods: tuple[str, ...] | None = None
    """Names of allowed methods; a job with ``lora+norm`` needs both."""
    bytes_per_round: int | None = Field(default=None, ge=1)
    """Most bytes of tensors, or of their ciphertexts, that leave in a round."""
    backbones: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] | None = None
    """SHA-256 of the weights files that a job may use."""
    max_epsilon: float | None = Field(default=None, gt=0)
    """The most that all jobs together may cost, by what the site does itself (see `pt_peft.privacy.budget`), at the
    experiment's delta: for each training image with ``privacy.sample``, else by the site's own share of the noise on
    its update."""

    def check(self, experiment: Experiment) -> None:
        """Raises OutsideLimits, in words that may leave the site, if `experiment` is outside the limits."""
        if self.methods is not None:
            for name in experiment.method.name.split("+"):
                if name not in self.methods:
                    raise _refused("methods", f"method {name}", f"allowed: {', '.join(self.methods) or 'none'}")
        if self.backbones is not None and experiment.backbone.sha256 not in self.backbones:
            raise _refused(
                "backbones", f"backbone weights of digest {experiment.backbone.sha256}", "which the site does not know"
            )
        if self.max_epsilon is not None:
            asked = None
            if not experiment.privacy.asked:
                asked = "training without differential privacy"
            elif not experiment.privacy.claimed:
                asked = "noise that everybody can compute from the experiment"
            elif not experiment.privacy.by_sites:
                asked = "differential privacy by noise that only the server adds"
            if asked:
                allowed = f"epsilon at most {self.max_epsilon:g} is asked for, by noise of the site's own"
                raise _refused("max_epsilon", asked, allowed)

    def check_bytes(self, experiment: Experiment, exchange: Exchange, round_number: int) -> None:
        """Raises OutsideLimits if the payload that leaves in a round, as it travels, has more bytes than the limit."""
        encrypted = experiment.encryption is not None
        self.check_nbytes(round_bytes(exchange, experiment.payload, round_number, encrypted=encrypted).up)

    def check_nbytes(self, nbytes: int) -> None:
        """Raises OutsideLimits if so many bytes at once are more than the limit of a round."""
        if self.bytes_per_round is not None and nbytes > self.bytes_per_round:
            raise _refused("bytes_per_round", f"{nbytes} bytes a round", f"allowed: {self.bytes_per_round}")


def _refused(field: str, asked: str, allowed: str) -> OutsideLimits:
    return OutsideLimits(field, asked, allowed)
