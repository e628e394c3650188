"""What a lead may write in a job's ``meta.json``, and what FLARE's record of a job must be before anything is deployed.

FLARE keeps one record of a job for the lead's fields and for its own, takes the lead's value for its own wherever it
finds one, and names folders by it: a job with the id ``startup`` would have the folder of the keys erased.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.job_def import JobMetaKey, is_valid_job_id
from nvflare.app_opt.flower.defs import Constant as FlowerConstant
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from pt_peft.errors import UserError
from pt_peft.schema import Strict, parse


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a name of printable characters would be right")
    return text


Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
Names = tuple[Name, ...]


class _Sites(Strict):
    sites: Names


class _Targets(Strict):
    targets: Names


Participants = Name | _Sites | _Targets


class _Resources(Strict):
    num_of_gpus: NonNegativeInt = 0
    mem_per_gpu_in_GiB: NonNegativeFloat = 0
    num_of_cpus: PositiveInt = 1
    memory: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,9}(Mi|Gi|Ti)$")] = "1Gi"


class JobMeta(Strict):
    """All that a lead says of a job beside its apps. With other types of values FLARE schedules no more jobs at all."""

    MOVED: ClassVar[Mapping[str, str]] = {key.value: "is not a lead's to set; leave it out" for key in JobMetaKey}
    name: Name = ""
    deploy_map: dict[Name, Participants | tuple[Participants, ...]]
    """The sites that get each app. FLARE has checked that the apps are there."""
    min_clients: PositiveInt = 1
    """Fewest sites with which the job starts. Each site has its own, ``limits.min_sites``."""
    mandatory_clients: Names = ()
    """Sites without which the job does not start."""
    resource_spec: dict[Name, _Resources] = Field(default={})
    """What the job takes of each site. Its ``resources.json`` says what GPUs there are; FLARE's launchers alone heed
    cores and memory."""
    scope: Name = ""
    """Which scope of a site's own ``privacy.json`` holds, where the site has one."""


ADDED = (JobMetaKey.STUDY.value, AppValidationKey.BYOC, FlowerConstant.FLOWER_PREDEPLOYED)
"""What FLARE has put in place of the lead's value before it asks about a job."""


def problem_of_submitted(meta: Mapping[str, Any]) -> str | None:
    """Why a job with this ``meta.json`` is not taken, if it is not."""
    try:
        parse(JobMeta, {key: value for key, value in meta.items() if key not in ADDED}, "meta.json")
    except UserError as error:
        return str(error)
    return None


def problem_of_stored(job_id: object, meta: Mapping[str, Any]) -> str | None:
    """Why a job that FLARE has stored must not be deployed, whoever has written its record.

    Args:
        job_id: the name of the folder that the job would get.
        meta: FLARE's record of the job.
    """
    cloned_from = meta.get(JobMetaKey.CLONED_FROM.value)
    if not is_valid_job_id(job_id) or meta.get(JobMetaKey.JOB_ID.value) != job_id:
        return f"{str(job_id)[:100]!r} is not an id that FLARE has given to this job; submit the job again"
    if cloned_from is not None and not is_valid_job_id(cloned_from):
        return f"it says that it was cloned from {str(cloned_from)[:100]!r}, which is not the id of a job"
    return None
