"""What the values of a site's labels mean: the site says which of them are which class of the experiment."""

from collections.abc import Mapping, Sequence

from pt_peft.data.problems import Report
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data


def class_of_value(data: Data, own: SiteData) -> dict[str, int]:
    """The class that each value means, as an index into ``data.classes``.

    Args:
        data: names the classes.
        own: says which of the site's values mean them.

    Raises:
        UserError: if the site describes a class that the experiment does not have, or a value means two things.
    """
    field = "site.json: field 'data.classes'"
    if others := [name for name in own.classes if name not in data.classes]:
        raise UserError(
            f"{field} has the class {others[0]!r}, which the experiment does not have; its classes are "
            f"{', '.join(data.classes)}.",
            "data.classes",
        )
    meaning: dict[str, int] = {}
    for index, name in enumerate(data.classes):
        itself = str(index) if own.source == "npz" else name
        for value in own.classes.get(name, (itself,)):
            if meaning.setdefault(value, index) != index:
                raise UserError(
                    f"{field}: the value {value!r} means both {data.classes[meaning[value]]!r} and {name!r} (a class "
                    f"that is not listed there is meant by {itself!r}); one class for each value would be right.",
                    "data.classes",
                )
    if data.task == "multilabel" and own.no_finding in meaning:
        name = data.classes[meaning[own.no_finding]]
        raise UserError(
            f"site.json: field 'data.no_finding' is {own.no_finding!r}, which also means the class {name!r}; a value "
            "that means no class would be right.",
            "data.no_finding",
        )
    return meaning


def report_unknown(places: Mapping[str, Sequence[str]], where: str, data: Data, report: Report) -> None:
    """Reports each value that means no class, with the number of its images.

    Args:
        places: by value, where it stands: a phrase for each image.
        where: the file, and what in it has the values.
        data: the experiment's classes and task.
        report: takes a problem for each value.
    """
    joined = "; several values would be joined by '|'" if data.task == "multilabel" else ""
    for value, found in places.items():
        report(
            "unknown label",
            f"{where} {value!r} ({len(found)} image(s), the first {found[0]}) means none of the experiment's classes "
            f"({', '.join(data.classes)}); 'data.classes' of site.json says which values mean a class{joined}.",
        )
