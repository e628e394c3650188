"""Why there is no result of a site: the closed list of what the site may say, and the server.

A reason leaves its site, so that it has a code and checked fields in place of an error's message, which may hold paths,
names of columns and values. Numbers are rounded. A string is kept only if the lead knows it already, see
`pt_peft.federation.known_names`. What is said is put together from the code where it is read. Imports no torch.
"""

from collections.abc import Container
from typing import Annotated, ClassVar, Literal, Self, cast, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

MAX_CHARACTERS = 10_000
"""Characters of a reason's JSON that travel, or are read."""
MAX_WORDS = 50
"""Numbers and names of a list that are kept."""

Number = Annotated[
    float, Field(ge=-1e15, le=1e15, allow_inf_nan=False), AfterValidator(lambda value: float(f"{value:.6g}"))
]
"""A number, to six significant digits."""
Word = Annotated[str, Field(max_length=200)]
"""A name of the lead's: of a field, a tensor, a method …"""
Words = Annotated[tuple[Number | Word, ...], Field(max_length=MAX_WORDS)]


class Reason(BaseModel):
    """A reason. Its fields are its ``code``, literals, numbers and words of the lead's."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    says: ClassVar[str]
    """The reason in words, without a full stop, with the names of its fields in braces."""

    def sentence(self) -> str:
        """The reason in words, for who has no other of the site's."""
        return self.says.format(**{name: _shown(name, value) for name, value in self})

    def cleared(self, known: Container[str]) -> Self:
        """The same reason without the words that are not `known` to the lead.

        Of a dotted name the longest part is kept that is known.
        """
        texts = {name for name, field in type(self).model_fields.items() if get_origin(field.annotation) is not Literal}
        return self.model_copy(update={name: _cleared(value, known) for name, value in self if name in texts})

    def to_json(self) -> dict[str, JsonValue]:
        """The code and the fields that are set."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value not in (None, [])}


def _cleared(value: object, known: Container[str]) -> object:
    if isinstance(value, tuple):
        several = cast(tuple[object, ...], value)
        return tuple(one for one in several if not isinstance(one, str) or one in known)
    if not isinstance(value, str) or value in known:
        return value
    parent, dot, _ = value.rpartition(".")
    return _cleared(parent, known) if dot else None


def words(text: str) -> tuple[float | str, ...]:
    """The words of `text` as `Words`, of which `Reason.cleared` keeps the numbers and the names that the lead knows."""
    return tuple(_word(one.strip(",.;:()'\"")) for one in text.split()[:MAX_WORDS])


def _word(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text[:200]
    return number if abs(number) <= 1e15 else text[:200]


def _shown(name: str, value: object) -> str:
    if value is None or value == ():
        return ""
    values = cast(tuple[object, ...], value) if isinstance(value, tuple) else (value,)
    listed = " ".join(_plain(one) if isinstance(one, float) else str(one) for one in values)
    return _PHRASES.get(name, "{}").format(listed)


_PHRASES = {
    "asked": ": it asks for {}",
    "allowed": "; allowed: {}",
    "field": " (field '{}')",
    "task": " for task '{}'",
    "tensor": " (tensor '{}')",
}
"""How fields are put in words, with what goes before them."""


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:.6g}"


class Failed(Reason):
    """No cause that is told more closely."""

    code: Literal["failed"] = "failed"
    field: Word | None = None
    says = "the site could not do its task{field}; its log says why"


class OutsideLimits(Reason):
    """The site's limits refuse what the job asks."""

    code: Literal["outside_limits"] = "outside_limits"
    field: Word | None = None
    """Of ``limits`` in `site.json`."""
    asked: Words = ()
    allowed: Words = ()
    says = "the site's limits refuse this{field}{asked}{allowed}"


class PrivacyBudget(Reason):
    """The job would cost more epsilon than the site has left."""

    code: Literal["privacy_budget"] = "privacy_budget"
    total: Number
    """Epsilon of all jobs of the site with this one."""
    spent: Number
    """Epsilon of all that the site has trained so far."""
    limit: Number
    """``limits.max_epsilon``."""
    says = (
        "the site's limits refuse this (field 'max_epsilon'): its epsilon would be {total}, of which {spent} "
        "is spent already; allowed: {limit}"
    )


class OtherBackbone(Reason):
    """The backbone's weights are not those that the experiment pins."""

    code: Literal["other_backbone"] = "other_backbone"
    says = "the site's backbone file is not the one whose SHA-256 the experiment pins"


class Backbone(Reason):
    """The site has no weights of the backbone that can be used."""

    code: Literal["backbone"] = "backbone"
    field: Word | None = None
    says = "the site's backbone file cannot be used{field}; its log says why"


class Data(Reason):
    """The site's images or its table are not as the job needs them."""

    code: Literal["data"] = "data"
    field: Word | None = None
    says = "the site's images or table are not as the job needs them{field}; its log says what"


class NoImages(Reason):
    """The site has no training image."""

    code: Literal["no_images"] = "no_images"
    says = "the site has no training image"


class SiteSettings(Reason):
    """`site.json` is not valid, or not as the job needs it."""

    code: Literal["site_settings"] = "site_settings"
    field: Word | None = None
    says = "the site's site.json is not as it should be{field}; its log says why"


class ExperimentInvalid(Reason):
    """The site cannot run the job's experiment, whatever its own settings are."""

    code: Literal["experiment"] = "experiment"
    field: Word | None = None
    says = "the site cannot run the job's experiment{field}; its log says why"


class NotAClone(Reason):
    """The job says that it continues another one, and is no clone of it."""

    code: Literal["not_a_clone"] = "not_a_clone"
    says = "the job says that it was cloned from another one, and has not its experiment"


class NotFinite(Reason):
    """The training gave a loss or a tensor that is not finite."""

    code: Literal["not_finite"] = "not_finite"
    says = "the training gave a value that is not finite; a smaller training.learning_rate may be right"


class Payload(Reason):
    """What the server sent, or what the site has, is not the tensors that the experiment asks for."""

    code: Literal["payload"] = "payload"
    tensor: Word | None = None
    says = "the payload is not what the experiment asks for{tensor}; the site's log says why"


class MissedRounds(Reason):
    """The site does not hold what it was taken to hold."""

    code: Literal["missed_rounds"] = "missed_rounds"
    held: Number
    """Number of finished rounds whose aggregate the site holds."""
    needed: Number
    says = (
        "the site holds the aggregate of {held} finished rounds, but was sent only what has changed since {needed}; it "
        "will be sent all in the next round"
    )


class EncryptionKey(Reason):
    """The site has no key for the job's encryption, or none that can be used."""

    code: Literal["encryption_key"] = "encryption_key"
    says = "the site has no key for the job's encryption that can be used; its log says why"


class Filters(Reason):
    """The job's config puts other filters on what leaves than a site asks for."""

    code: Literal["filters"] = "filters"
    task: Word | None = None
    """The task whose results would not pass the egress filter last."""
    says = "field 'task_result_filters' of config_fed_client is not what a site needs{task}; its log says why"


class HeldBack(Reason):
    """The egress filter let nothing pass."""

    code: Literal["held_back"] = "held_back"
    what: Literal["tensors", "report", "task", "error"]
    """What was wrong: the tensors, the report, the task itself, or the filter broke down."""
    field: Word | None = None
    """Of the report."""
    tensor: Word | None = None
    says = "held back by the egress filter: {what}{field}{tensor}; the site's ledger says why"


class WorkerTimeout(Reason):
    """The site's worker was not done in time."""

    code: Literal["worker_timeout"] = "worker_timeout"
    seconds: Number
    says = "the site's worker did not finish within {seconds} s and was stopped"


class WorkerDied(Reason):
    """The site's worker ended while it worked, or cannot be started."""

    code: Literal["worker_died"] = "worker_died"
    says = "the site's worker died, perhaps for want of memory; the site's log may say why"


class Stopped(Reason):
    """The job was stopped."""

    code: Literal["stopped"] = "stopped"
    says = "stopped"


class OutOfMemory(Reason):
    """There was not enough memory, of the computer or of its GPU."""

    code: Literal["out_of_memory"] = "out_of_memory"
    says = "the site has too little memory for the job"


class DiskFull(Reason):
    """There was not enough space on the disk."""

    code: Literal["disk_full"] = "disk_full"
    says = "the site's disk is full"


class Internal(Reason):
    """An error that nobody has foreseen."""

    code: Literal["internal"] = "internal"
    says = "the site's worker broke down; its log says why"


class Flare(Reason):
    """FLARE itself could not do the task."""

    code: Literal["flare"] = "flare"
    return_code: Word | None = None
    """FLARE's word."""
    says = "FLARE could not do the task at the site ({return_code})"


SiteReason = (
    Failed
    | OutsideLimits
    | PrivacyBudget
    | OtherBackbone
    | Backbone
    | Data
    | NoImages
    | SiteSettings
    | ExperimentInvalid
    | NotAClone
    | NotFinite
    | Payload
    | MissedRounds
    | EncryptionKey
    | Filters
    | HeldBack
    | WorkerTimeout
    | WorkerDied
    | Stopped
    | OutOfMemory
    | DiskFull
    | Internal
    | Flare
)
"""What a site may say."""

_SITE_REASON: TypeAdapter[SiteReason] = TypeAdapter(Annotated[SiteReason, Field(discriminator="code")])


def read_reason(text: object) -> SiteReason | None:
    """A site's reason from its JSON, whoever wrote it; None if it is none."""
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        return None
    try:
        return _SITE_REASON.validate_json(text)
    except ValidationError:
        return None


class NoAnswer(Reason):
    """The site has not answered in time."""

    code: Literal["no_answer"] = "no_answer"
    seconds: Number
    says = "no answer within {seconds} s"


class Silent(Reason):
    """The server has heard nothing of the site."""

    code: Literal["silent"] = "silent"
    seconds: Number
    says = "silent for {seconds} s"


class ShutOut(Reason):
    """An admin has shut the site out."""

    code: Literal["shut_out"] = "shut_out"
    says = "was shut out"


class KilledTooOften(Reason):
    """The site's process is not started again."""

    code: Literal["killed_too_often"] = "killed_too_often"
    says = "its process has died too often"


class Unreadable(Reason):
    """The result, or the reason for there being none, could not be read."""

    code: Literal["unreadable"] = "unreadable"
    says = "the result could not be read"


class BadResult(Reason):
    """The result is not what the site had to send."""

    code: Literal["bad_result"] = "bad_result"
    what: Literal["tensors", "report"]
    """What is wrong."""
    field: Word | None = None
    """Of the report."""
    tensor: Word | None = None
    says = "the result is not what the site had to send: {what}{field}{tensor}"


class OtherCode(Reason):
    """The result was made by other code than the server's, and ``federation.code`` is ``same``."""

    code: Literal["other_code"] = "other_code"
    says = "the site runs other code than the server, but federation.code is 'same'"


ServerReason = NoAnswer | Silent | ShutOut | KilledTooOften | Unreadable | BadResult | OtherCode
"""What the server says of a site, which has no result or one that is not taken."""
