"""The bounds a site sets on what may be asked of it."""

from lepton_common.strict import Count, Name, NotNegative, OpenFraction, Positive, record


@record
class SitePolicy:
    """A site's own policy; a request outside it is refused before any data is read.

    Attributes:
        allow_unprotected: whether updates may leave without DP; red in every report.
        max_epsilon: total budget of the site's data, over all runs.
        max_delta: largest delta a run may ask for.
        min_noise_multiplier: smallest noise multiplier.
        max_clipping_norm: largest clipping norm.
        max_batch_size: most records held in memory at once in private training, so that running
            out of memory cannot tell how many were sampled.
        min_cohort: smallest cohort the site takes part in.
        tasks: tasks the site serves; None: all in its catalog.
    """

    allow_unprotected: bool
    max_epsilon: Positive
    max_delta: OpenFraction
    min_noise_multiplier: NotNegative
    max_clipping_norm: Positive
    max_batch_size: Count
    min_cohort: Count
    tasks: list[Name] | None
