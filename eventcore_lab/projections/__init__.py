"""Read models: what is folded from the events of a store so that it can be asked, and how it is kept up to date.

`projection` says what one is, `memory` and `table` keep it exactly once through any crash, `views` leaves it to the server,
`chapter` is how it should not be done, `plain` what all are held against. Importing this registers every read model.
"""

from eventcore_lab.projections import memory as memory
from eventcore_lab.projections import table as table
from eventcore_lab.projections import views as views
from eventcore_lab.projections.memory import Remembered, rebuild
from eventcore_lab.projections.projection import Projection
from eventcore_lab.projections.read_model import Kept, Overtaken, ReadModel, Step, catch_up, read_models
from eventcore_lab.projections.users import UserSummary, users

__all__ = [
    "Kept",
    "Overtaken",
    "Projection",
    "ReadModel",
    "Remembered",
    "Step",
    "UserSummary",
    "catch_up",
    "read_models",
    "rebuild",
    "users",
]
