"""Notebooks as reports: find one, check its parameters, run it in a kernel of this interpreter, leave a page."""

from eventcore_lab.reports.execution import Report, ReportFolderError, execute
from eventcore_lab.reports.index import rewrite_index
from eventcore_lab.reports.notebooks import find_notebook, is_stripped, strip
from eventcore_lab.reports.parameters import Parameter, declared_parameters, parse_parameters
from eventcore_lab.reports.stop import CellError

__all__ = [
    "CellError",
    "Parameter",
    "Report",
    "ReportFolderError",
    "declared_parameters",
    "execute",
    "find_notebook",
    "is_stripped",
    "parse_parameters",
    "rewrite_index",
    "strip",
]
