"""Studies: methods compared over seeds and sites, with references, intervals and what each site contributes.
The launcher and the journals of finished runs come in; nothing here is needed by a run itself."""

from foedus.study.comparing import compare
from foedus.study.study import Study, Table

__all__ = ["Study", "Table", "compare"]
