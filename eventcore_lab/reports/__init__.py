"""Notebooks as reports: find one, check its parameters, run it in a kernel of this interpreter, leave a page; and many of
them from one file."""

from eventcore_lab.reports.execution import Compare, Report, ReportFolderError, execute
from eventcore_lab.reports.index import rewrite_index
from eventcore_lab.reports.notebooks import find_notebook, is_stripped, strip
from eventcore_lab.reports.parameters import Parameter, declared_parameters, parse_parameters, typed_parameters
from eventcore_lab.reports.record import exit_code_of, worst
from eventcore_lab.reports.stop import CellError
from eventcore_lab.reports.suite import Job, Suite, read_suite, run_suite

__all__ = [
    "CellError",
    "Compare",
    "Job",
    "Parameter",
    "Report",
    "ReportFolderError",
    "Suite",
    "declared_parameters",
    "execute",
    "exit_code_of",
    "find_notebook",
    "is_stripped",
    "parse_parameters",
    "read_suite",
    "rewrite_index",
    "run_suite",
    "strip",
    "typed_parameters",
    "worst",
]
