"""Which audit records are wanted, and how other programs get them: JSON lines, CSV, OCSF."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import rfc8785

from policies.text import cell

Record = dict[str, Any]
Format = Literal["jsonl", "csv", "ocsf"]
_AGO = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_COLUMNS = ("seq", "time", "event", "user", "uid", "execution", "sprint", "allow", "outcome", "rule", "what")


@dataclass(frozen=True)
class Wanted:
    """A filter; what is None is not asked."""

    since: datetime | None = None
    execution: str | None = None
    sprint: str | None = None
    user: str | None = None
    outcome: str | None = None
    rule: str | None = None
    """A rule's id, or the beginning of one up to a dot: `request` finds `request.wall`."""

    def has(self, record: Record) -> bool:
        """Whether the record is wanted. A sweep belongs to every execution whose container it removed."""
        actor = _mapping(record.get("actor"))
        return (
            (self.since is None or _time(record) >= self.since)
            and (self.execution is None or self.execution in executions_of(record))
            and (self.sprint is None or _bare(self.sprint) == _bare(record.get("sprint")))
            and self.user in (None, actor.get("user"), str(actor.get("uid")))
            and self.outcome in (None, record.get("outcome"))
            and (self.rule is None or any(_under(self.rule, rule) for rule in rules_of(record)))
        )


def parse_since(text: str) -> datetime:
    """A moment from "2026-11-23", "2026-11-23T10:00" (UTC unless it says otherwise) or "2h". Raises ValueError."""
    if match := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return datetime.now(UTC) - timedelta(**{_AGO[match[2]]: int(match[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f'not a moment: {text!r} (write "2026-11-23", "2026-11-23T10:00", "2h" or "7d")') from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def rules_of(record: Record) -> list[str]:
    """Ids of the rules that a record names, each once."""
    ids = [str(rule.get("id")) for rule in _listed(record.get("rules")) if isinstance(rule, dict)]
    return list(dict.fromkeys(ids + ([str(record["rule"])] if record.get("rule") else [])))


def executions_of(record: Record) -> list[str]:
    """Ids of the executions that a record is about: its own, and those whose containers it says were removed."""
    own = [str(record["execution"])] if record.get("execution") else []
    return own + [str(one) for one in _listed(record.get("removed"))]


def marked(record: Record) -> Record:
    """The record with the mark of one that no checkpoint covers."""
    return {**record, "signed": False}


def what(record: Record) -> str:
    """A record's point in a few words; "" for an event of a version that knows more."""
    text = TEXTS.get(str(record.get("event")))
    try:
        told = text(record) if text is not None else ""
    except (AttributeError, TypeError, ValueError):  # somebody else's writing
        told = ""
    return ": ".join(["not signed"] + [told] * bool(told)) if record.get("signed") is False else told


def _decision(record: Record) -> str:
    verb = "allowed" if record.get("allow") else "denied"
    return f"{verb} under {(record.get('policy') or {}).get('name')}: {', '.join(rules_of(record))}"


def _start(record: Record) -> str:
    image, wrong = record.get("image") or {}, record.get("deviations")
    told = f"container {str(record.get('container'))[:16]} from {image.get('reference')}"
    return f"{told}, not as decided: {'; '.join(map(str, wrong))}" if wrong else told


def _dependencies(record: Record) -> str:
    return f"fetched {', '.join(str(line).split(' ')[0] for line in record.get('wheels') or [])}"


def _network(record: Record) -> str:
    verb = "allowed" if record.get("allow") else "refused"
    where = f"{record.get('method')} {record.get('host')}:{record.get('port')}"
    return f"{verb} {where} ({record.get('rule')}: {record.get('reason')})"


def _network_end(record: Record) -> str:
    return (
        f"{record.get('host')}:{record.get('port')}, {record.get('bytes_up')} bytes up, {record.get('bytes_down')} down"
    )


def _lease(record: Record) -> str:
    shared = ", shared" if record.get("shared") else ""
    return f"lent {', '.join(map(str, record.get('gpus') or []))}{shared}, after {record.get('waited_s')} s"


def _repaired(record: Record) -> str:
    torn, dropped = record.get("torn_bytes"), record.get("dropped_records")
    told = [f"cut {torn} bytes of a torn line"] if torn else []
    if dropped:
        records = "1 unsigned record" if dropped == 1 else f"{dropped} unsigned records"
        told.append(f"dropped {records} ({record.get('dropped_bytes')} bytes)")
    return ", ".join(told) or "repaired"


def _end(record: Record) -> str:
    outcome, message = str(record.get("outcome")), str(record.get("message"))
    return outcome if message == outcome else f"{outcome}: {message}"


TEXTS: dict[str, Callable[[Record], str]] = {
    "decision": _decision,
    "start": _start,
    "warm": lambda record: f"a container of {(record.get('image') or {}).get('reference')} is made ahead",
    "warm-end": lambda record: "the container that was made ahead served no run",
    "dependencies": _dependencies,
    "network": _network,
    "network-end": _network_end,
    "network-flood": lambda record: f"refused {record.get('refused')} more requests",
    "lease": _lease,
    "limit": lambda record: f"{record.get('limit')} reached",
    "end": _end,
    "sweep": lambda record: f"removed {len(record.get('removed') or [])} abandoned container(s)",
    "kill": lambda record: "ended from outside",
    "log-repaired": _repaired,
    "log-adopted": lambda record: f"{record.get('records')} records from before there were checkpoints",
}
"""How each event is told."""


def export(records: Iterable[Record], form: Format) -> Iterator[str]:
    """The records as text, part by part."""
    if form == "csv":
        yield from _csv(records)
        return
    for record in records:
        shown = record if form == "jsonl" else ocsf(record)
        yield rfc8785.dumps(shown).decode() + "\n"


def _csv(records: Iterable[Record]) -> Iterator[str]:
    yield ",".join(_COLUMNS) + "\r\n"
    for record in records:
        actor = _mapping(record.get("actor"))
        row = {**record, **actor, "rule": " ".join(rules_of(record)), "what": what(record)}
        line = io.StringIO()
        csv.writer(line).writerow([cell(row.get(name)) for name in _COLUMNS])
        yield line.getvalue()


# Open Cybersecurity Schema Framework 1.3: event → (category, class, activity).
_SYSTEM, _NETWORK, _APPLICATION = 1, 4, 6
_CLASSES = {
    "decision": (_APPLICATION, 6003, 1),  # API Activity: Create, with its status
    "start": (_APPLICATION, 6002, 3),  # Application Lifecycle: Start
    "end": (_APPLICATION, 6002, 4),  # Stop
    "kill": (_APPLICATION, 6002, 4),
    "sweep": (_APPLICATION, 6002, 2),  # Remove
    "dependencies": (_APPLICATION, 6002, 1),  # Install
    "network": (_NETWORK, 4002, 99),  # HTTP Activity; the method is in the request
    "network-end": (_NETWORK, 4001, 2),  # Network Activity: Close
}


def ocsf(record: Record) -> Record:
    """One OCSF event; what OCSF has no place for is under `unmapped`, whole."""
    event = str(record.get("event"))
    category, kind, activity = _CLASSES.get(event, (_APPLICATION, 6002, 99))
    actor = _mapping(record.get("actor"))
    good = record.get("allow", record.get("outcome") in (None, "completed"))
    shown: Record = {
        "category_uid": category,
        "class_uid": kind,
        "activity_id": activity,
        "type_uid": kind * 100 + activity,
        "time": round(_time(record).timestamp() * 1000),
        "severity_id": 1 if good else 3,
        "status_id": 1 if good else 2,
        "message": what(record) or event,
        "metadata": {
            "version": "1.3.0",
            "product": {"name": "labsandbox", "vendor_name": "labsandbox"},
            "event_code": event,
            "uid": str(record.get("seq")),
            "correlation_uid": record.get("execution") or record.get("sprint"),
        },
        "actor": {"user": {"name": str(actor.get("user")), "uid": str(actor.get("uid"))}},
        "unmapped": record,
    }
    if kind == 6002:
        shown["app"] = {"name": "labsandbox", "vendor_name": "labsandbox"}
    if kind == 6003:
        shown["api"] = {"operation": "run experiment", "response": {"message": what(record)}}
        shown["src_endpoint"] = {"name": "localhost"}
    if category == _NETWORK:
        shown["dst_endpoint"] = {
            "hostname": record.get("host"),
            "port": record.get("port"),
            "ip": record.get("address"),
        }
        shown["traffic"] = {"bytes_out": record.get("bytes_up", 0), "bytes_in": record.get("bytes_down", 0)}
    if kind == 4002:
        shown["http_request"] = {"http_method": record.get("method")}
    return shown


def _time(record: Record) -> datetime:
    try:
        return datetime.fromisoformat(str(record.get("time")).replace("Z", "+00:00"))
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _bare(sprint: Any) -> str:
    """A sprint's id, however it is written: as its folder, `sprint_ID`, or as `ID`."""
    return str(sprint or "").removeprefix("sprint_")


def _under(wanted: str, rule: str) -> bool:
    return rule == wanted or rule.startswith(f"{wanted}.")
