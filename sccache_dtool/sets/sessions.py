"""Sessions: a data set, and the leases that belong to it. What is on disk is in `protocol/sessions.py`."""

from __future__ import annotations

from sccache_dtool.liveness.record import Membership as Membership
from sccache_dtool.protocol.sessions import Deleted as Deleted
from sccache_dtool.protocol.sessions import Entry as Entry
from sccache_dtool.protocol.sessions import NoSession as NoSession
from sccache_dtool.protocol.sessions import SessionFacts as SessionFacts
from sccache_dtool.protocol.sessions import create as create
from sccache_dtool.protocol.sessions import delete as delete
from sccache_dtool.protocol.sessions import id_of_view as id_of_view
from sccache_dtool.protocol.sessions import listing as listing
from sccache_dtool.protocol.sessions import new_id as new_id
from sccache_dtool.protocol.sessions import read as read
from sccache_dtool.protocol.sessions import view_path as view_path
