"""What the values of a site's labels mean: the site says which of them are which class of the experiment."""

from collections.abc import Mapping, Sequence

from pt_peft.data.names import clean
from pt_peft.data.problems import Report
from pt_peft.errors import UserError
from pt_peft.experiment.own_images import SiteData
from pt_peft.experiment.sections import Data


def class_of_value(data: Data, own: SiteData) -> dict[str, int]:
    """The class that each value means, as an index into ``data.classes``; values are as `clean` leaves them.

    A class that is meant by its own name alone has no value here if ``data.leave_out`` of `site.json` has the name.

    Args:
        data: names the classes.
        own: says which of the site's values mean them.

    Raises:
        UserError: if the site describes a class that the experiment does not have, or a value means two things; and
            where ``columns.label`` is null unless the site describes every class, as no job may name a column.
    """
    field = "site.json: field 'data.classes'"
    given = {clean(name): values for name, values in own.classes.items()}
    left_out = {clean(value) for value in own.leave_out}
    if others := given.keys() - {clean(name) for name in data.classes}:
        raise UserError(
            f"{field} has the class {min(others)!r}, which the experiment does not have; its classes are "
            f"{', '.join(data.classes)}.",
            "data.classes",
        )
    columns = own.source == "csv" and own.columns.label is None
    if columns and (free := [name for name in data.classes if clean(name) not in given]):
        raise UserError(
            f"{field} has no columns of the class {free[0]!r}; where data.columns.label is null it must list every "
            "class of the experiment, as no job names a column of a site (an empty list if the site has none).",
            "data.classes",
        )
    meaning: dict[str, int] = {}
    for index, name in enumerate(data.classes):
        itself = str(index) if own.source == "npz" else name
        for value in map(clean, given.get(clean(name), (itself,))):
            if value in left_out:
                if clean(name) not in given:
                    continue
                raise UserError(
                    f"site.json: field 'data.leave_out' has {value!r}, which means the class {name!r} by "
                    "'data.classes'; one of the two would be right.",
                    "data.leave_out",
                )
            if meaning.setdefault(value, index) != index:
                raise UserError(
                    f"{field}: the value {value!r} means both {data.classes[meaning[value]]!r} and {name!r} (a class "
                    f"that is not listed there is meant by {itself!r}); one class for each value would be right.",
                    "data.classes",
                )
    if data.task == "multilabel" and own.no_finding and (nothing := clean(own.no_finding)) in meaning:
        name = data.classes[meaning[nothing]]
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
    joined = ""
    if data.task == "multilabel":
        joined = "; several values would be joined by '|', and with a column for each data.columns.label is null"
    for value, found in places.items():
        report(
            "unknown label",
            f"{where} {value!r} ({len(found)} image(s), the first {found[0]}) means none of the experiment's classes "
            f"({', '.join(data.classes)}); 'data.classes' of site.json says which values mean a class, and "
            f"'data.leave_out' which are left out{joined}.",
        )


def report_left_out(counts: Mapping[str, int], of: int, where: str, what: str, report: Report) -> None:
    """Warns of what ``data.leave_out`` of `site.json` leaves out, if it does.

    Args:
        counts: by value, the number of images that have it.
        of: the number of all, taken or not.
        where: the file or folder.
        what: the plural of what is counted, such as ``files`` or ``rows``.
        report: takes the sentence.
    """
    if counts:
        values = ", ".join(f"{value!r} in {count}" for value, count in sorted(counts.items()))
        report("left out", f"{where}: data.leave_out of site.json leaves out {values} of {of} {what}.", "warning")
