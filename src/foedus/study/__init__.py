"""Studies: methods compared over seeds and sites, with references, intervals and what each site contributes.
The launcher and the journals of finished runs come in; nothing here is needed by a run itself."""

from foedus.study.comparing import compare
from foedus.study.contribution import Contribution, contribution
from foedus.study.matrix import Matrix, cross_site
from foedus.study.study import Study, Table

__all__ = ["Contribution", "Matrix", "Study", "Table", "compare", "contribution", "cross_site"]
