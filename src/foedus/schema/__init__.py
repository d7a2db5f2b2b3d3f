"""The data contract: what a Job asks of a site's data, checked there before anything trains.
Arrays, frames and files come in; counts and the schema's own words go out, never a value or a file's name."""

from foedus.schema.checking import check
from foedus.schema.findings import Finding, Report
from foedus.schema.rules import Schema, read
from foedus.schema.show import table

__all__ = ["Finding", "Report", "Schema", "check", "read", "table"]
