"""The keywords of a project. Apart from the schema, as only those who read texts need the tables of wordings."""

from collections.abc import Sequence

from shared.config.schema import Project
from shared.domain.keywords import Keywords


def keywords_of(project: Project, *, opt_out: Sequence[str] = (), opt_in: Sequence[str] = ()) -> Keywords:
    """Return the opt-out and opt-in keywords of a project, and further ones that Twilio has shown."""
    return Keywords(
        opt_out=(*project.opt_out_keywords, *opt_out),
        opt_in=(*project.opt_in_keywords, *opt_in),
        ignored=tuple(project.ignored_keywords),
        suspects=project.suspected_opt_outs == "notify",
    )
