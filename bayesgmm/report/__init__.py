"""One HTML file from a fit or a selection: the answer first, every sentence from the numbers of the tables below it.

The file needs no network and nothing beside it. :func:`bayesgmm.report.page.write_report` makes it; ``fit.report(path)``,
``selection.report(path)`` and ``bayesgmm report DIR`` call that.
"""

from __future__ import annotations
