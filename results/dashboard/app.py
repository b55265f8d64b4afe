"""The dashboard as an ASGI application: which address shows what.

Pages are made here, of templates that escape everything; small scripts keep them up to date. Every request passes
`guard.py` first. What changes something is a POST with the form's key.
"""

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from executor.errors import ExecutorError
from policies.asking import LIMIT_OPTIONS
from policies.audit import AuditError
from policies.merge import box_ceilings, terms_here
from policies.model import PolicyError, built_in_policies, load_policy
from results import readable
from results.dashboard import files, places
from results.dashboard.audit_view import Verifier, audit_page
from results.dashboard.controls import Controls, Process, Refused, Wish
from results.dashboard.gpu_view import LookAtGpus, gpu_view
from results.dashboard.guard import Access, Guard
from results.dashboard.listing import SORTS, Asked, Listing, has_ended
from results.dashboard.live import Hub, TooMany
from results.dashboard.places import Place
from results.dashboard.recorded import Recorded
from results.dashboard.steps import Steps
from results.dashboard.sweep_view import sweep_view
from results.dashboard.tails import Lines, Tail
from results.dashboard.view import SprintView, Table, difference, sprint_view
from results.store import CODE, EVENTS, EXECUTION, Store, StoreError

_HERE = Path(__file__).parent
_MAX_FORM = 64 << 10
_MAX_COMPARED = 8
_LOG_SHOWN = 64 << 10
_MOST_PICTURES = 24
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def create_app(
    store: Store, lab: Controls, *, audit: Path, gpus: LookAtGpus, access: Access | None = None
) -> Starlette:
    """The application. audit: the log's path. gpus: a look at this machine's devices."""
    access = access or Access()
    pages = _Pages(store, lab, audit, gpus, access)
    routes = [
        Route("/", pages.sprints),
        Route("/sprints/{sprint}", pages.sprint),
        Route("/sprints/{sprint}/live", pages.live),
        Route("/sprints/{sprint}/curves.json", pages.curves),
        Route("/sprints/{sprint}/report", pages.report),
        Route("/sprints/{sprint}/drawing/{name}", pages.drawing),
        Route("/sprints/{sprint}/picture/{name:anything}", pages.picture),
        Route("/sprints/{sprint}/artifact/{name:anything}", pages.artifact),
        Route("/sprints/{sprint}/file/{name}", pages.file),
        Route("/sprints/{sprint}/stop", pages.stop, methods=["POST"]),
        Route("/compare", pages.compare),
        Route("/policies", pages.policies),
        Route("/audit", pages.audit),
        Route("/audit/state.json", pages.audit_state),
        Route("/gpus", pages.gpus),
        Route("/gpus.json", pages.gpus_json),
        Route("/start", pages.start_form, methods=["GET"]),
        Route("/start", pages.start, methods=["POST"]),
        Route("/static/{name}", _static()),
    ]
    handlers: dict[Any, Any] = {HTTPException: pages.problem, Exception: pages.failure}
    return Starlette(routes=routes, middleware=[Middleware(Guard, access=access)], exception_handlers=handlers)


class _Pages:
    """What each address answers."""

    def __init__(self, store: Store, lab: Controls, audit: Path, gpus: LookAtGpus, access: Access) -> None:
        self._store, self._lab, self._audit, self._gpus, self._access = store, lab, audit, gpus, access
        self._listing, self._hub, self._verifier = Listing(store), Hub(lab), Verifier(audit)
        self._recorded = Recorded()
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True, auto_reload=False,
        )  # fmt: skip
        self._templates.filters |= {"size": readable.size, "duration": readable.seconds, "digits": readable.digits}
        self._templates.globals |= {"form_key": access.form_key, "results": str(store.root)}

    # ---- sprints ----

    def sprints(self, request: Request) -> Response:
        """The list."""
        query = request.query_params
        asked = Asked(
            text=query.get("q", "")[:200],
            kind=query.get("kind", "")[:10],
            outcome=query.get("outcome", "")[:60],
            word=query.get("verdict", "")[:60],
            sort=query.get("sort", "date") if query.get("sort") in SORTS else "date",
            descending=query.get("order", "desc" if query.get("sort", "date") == "date" else "asc") != "asc",
            page=_whole(query.get("page", "1"), 1),
        )
        running = self._lab.running()
        try:
            page = self._listing.page(asked, list(running))
        except StoreError as error:
            raise HTTPException(503, str(error)) from None

        def link(**changes: Any) -> str:
            shown: dict[str, Any] = {
                "q": asked.text,
                "kind": asked.kind,
                "outcome": asked.outcome,
                "verdict": asked.word,
                "sort": asked.sort,
            }
            shown |= {"order": "desc" if asked.descending else "asc", "page": 1, **changes}
            return f"/?{urlencode({name: value for name, value in shown.items() if value})}"

        return self._page("sprints.html.j2", title="Runs", asked=asked, page=page, link=link, running=len(running))

    def sprint(self, request: Request) -> Response:
        """One run, going on or not, or a part of one."""
        folder = self._folder(request)
        process = self._lab.running().get(folder.id)
        stopping = process is not None and request.query_params.get("asked") == "stop"
        if folder.kind == "sweep":
            return self._sweep(folder, process, stopping)
        view, missing = self._view(folder)
        steps = Steps()
        with Lines(folder.path / EVENTS) as journal:
            for data in journal.all(16 << 20):
                steps.take(data)
        listed, more = files.artifacts(folder.path)
        return self._page(
            "sprint.html.j2",
            title=view.goal or folder.id,
            id=folder.id,
            view=view,
            missing=missing,
            process=process,
            stopping=stopping,
            place=folder,
            ended=has_ended(folder.path / EVENTS)
            if folder.kind == "sprint"
            else files.is_there(folder.path, EXECUTION),
            phases=steps.phases(process.since if process else None) if folder.kind == "sprint" else [],
            attempts=places.parts(folder, "attempts") if folder.kind == "sprint" else [],
            params=_params(folder) if folder.kind == "part" else [],
            steps=steps.steps,
            asked=steps.asked,
            logs={name: _last_of(folder.path / f"{name}.log") for name in ("stdout", "stderr")},
            artifacts=listed,
            pictures=[one for one in listed if one.picture][:_MOST_PICTURES],
            more_artifacts=more,
            own_files=[name for name in files.OWN_FILES if files.is_there(folder.path, name)],
            report=files.is_there(folder.path, files.REPORT),
            figure=files.is_there(folder.path, files.DRAWINGS[0]),
            last_words=self._lab.last_words(folder.id) if process is None else "",
        )

    def _sweep(self, folder: Place, process: Process | None, stopping: bool) -> Response:
        view = sweep_view(folder, process is not None)
        return self._page(
            "sweep.html.j2",
            title=view.goal,
            id=folder.id,
            view=view,
            process=process,
            stopping=stopping,
            drawings=[name for name in files.DRAWINGS if files.is_there(folder.path, name)],
            code=readable.plain(places.read_text(folder.path, CODE, 1 << 20)),
            own_files=[name for name in files.OWN_FILES if files.is_there(folder.path, name)],
        )

    async def live(self, request: Request) -> Response:
        """What happens in a sprint or a sweep, as it does."""
        folder = await run_in_threadpool(self._folder, request)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        try:
            self._hub.admit()
        except TooMany:
            raise HTTPException(503, "too many pages are open at runs that go on") from None
        return StreamingResponse(self._hub.stream(folder), media_type="text/event-stream")

    def curves(self, request: Request) -> Response:
        """Every curve of a sprint, thinned."""
        folder = self._folder(request)
        try:
            return Response(self._recorded.curves(folder.path), media_type="application/json")
        except OSError as error:
            raise HTTPException(503, f"the metrics of {folder.id} cannot be read: {error.strerror}") from None

    def report(self, request: Request) -> Response:
        """The report that was written about it."""
        return self._sent(files.report, request)

    def drawing(self, request: Request) -> Response:
        """What labsandbox itself drew of it."""
        name = request.path_params["name"]
        if name not in files.DRAWINGS:
            raise HTTPException(404, "there is no such file")
        return self._sent(lambda folder: files.picture(folder, name), request)

    def picture(self, request: Request) -> Response:
        """An artifact that is a picture."""
        return self._sent(lambda folder: files.picture(folder / "artifacts", _last_name(request)), request)

    def artifact(self, request: Request) -> Response:
        """An artifact, as a download."""
        return self._sent(lambda folder: files.download(folder / "artifacts", _last_name(request)), request)

    def file(self, request: Request) -> Response:
        """One of the files that labsandbox writes, as a download."""
        name = request.path_params["name"]
        if name not in files.OWN_FILES:
            raise HTTPException(404, "there is no such file")
        return self._sent(lambda folder: files.download(folder, name), request)

    def compare(self, request: Request) -> Response:
        """Several sprints side by side."""
        wanted = [one for value in request.query_params.getlist("ids") for one in value.split(",") if one]
        ids = list(dict.fromkeys(wanted))[:_MAX_COMPARED]
        try:
            found = [(folder.id, self._view(folder)[0]) for folder in (places.find(self._store, one) for one in ids)]
        except StoreError as error:
            raise HTTPException(404, str(error)) from None
        changed = difference(found[0][1].code, found[1][1].code, (found[0][0], found[1][0])) if len(found) == 2 else []
        return self._page("compare.html.j2", title="Compare", found=found, rows=_compared(found), changed=changed)

    # ---- the box ----

    def policies(self, request: Request) -> Response:
        """What may be done under which name, here."""
        found, problem = [], ""
        try:
            ceilings = box_ceilings()
            for name in built_in_policies():
                policy = load_policy(name)
                here = terms_here(policy, ceilings)
                found.append((policy, here.model_dump(), here != policy))
        except PolicyError as error:
            problem = readable.line(error)
        return self._page("policies.html.j2", title="Policies", found=found, problem=problem)

    def audit(self, request: Request) -> Response:
        """The audit log's records, newest first."""
        before = _whole(request.query_params.get("before", ""), None)
        sprint = request.query_params.get("sprint", "")[:80]
        try:
            page = audit_page(self._audit, before, sprint)
        except AuditError as error:
            raise HTTPException(503, str(error)) from None
        older = urlencode({"before": page.older, **({"sprint": sprint} if sprint else {})})
        state = self._verifier.state()
        return self._page(
            "audit.html.j2", title="Audit log", page=page, older=older, sprint=sprint, state=state, path=self._audit
        )

    def audit_state(self, request: Request) -> Response:
        """Whether the log is as it was signed."""
        state = self._verifier.state()
        return JSONResponse({"word": state.word, "text": state.text, "lines": list(state.lines)})

    def gpus(self, request: Request) -> Response:
        """The devices and the queue."""
        return self._page("gpus.html.j2", title="GPUs", seen=self._seen())

    def gpus_json(self, request: Request) -> Response:
        """The same as data, for a page that stays open."""
        return JSONResponse(self._seen())

    # ---- what changes something ----

    def start_form(self, request: Request) -> Response:
        """The form for a new sprint."""
        query = request.query_params
        policy, seed = query.get("policy", "default")[:100], query.get("seed", "0")[:20]
        return self._form(Wish(query.get("goal", "")[:2000], policy, seed, follows=query.get("follows", "")[:60]))

    async def start(self, request: Request) -> Response:
        """Starts a sprint."""
        form = await self._checked_form(request)
        limits = {name: form[name].strip() for name in LIMIT_OPTIONS if form.get(name, "").strip()}
        wish = Wish(form.get("goal", ""), form.get("policy", ""), form.get("seed", ""), limits, form.get("follows", ""))
        if wish.policy not in built_in_policies():  # no files: what a file is, only the command line may say
            return self._form(wish, "choose one of the policies")
        try:
            sprint = await run_in_threadpool(self._lab.start, wish)
        except Refused as refused:
            return self._form(wish, str(refused))
        return RedirectResponse(f"/sprints/{sprint}", 303)

    async def stop(self, request: Request) -> Response:
        """Interrupts a sprint."""
        await self._checked_form(request)
        folder = await run_in_threadpool(self._folder, request)
        try:
            await run_in_threadpool(self._lab.stop, folder.id)
        except Refused as refused:
            raise HTTPException(409, str(refused)) from None
        return RedirectResponse(f"/sprints/{folder.id}?asked=stop", 303)

    def _form(self, wish: Wish, problem: str = "") -> Response:
        policies = [load_policy(name) for name in built_in_policies()]
        status = 400 if problem else 200
        return self._page(
            "start.html.j2", status, title="Start a sprint", wish=wish, problem=readable.line(problem, 1000),
            policies=policies, limits=LIMIT_OPTIONS,
        )  # fmt: skip

    async def _checked_form(self, request: Request) -> dict[str, str]:
        """The fields of a form that came from a page of ours. Raises HTTPException."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
            raise HTTPException(415, "not a form")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_FORM:
                raise HTTPException(413, "the form is too long")
        try:
            form = dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=50))
        except ValueError:
            raise HTTPException(400, "not a form") from None
        if not hmac.compare_digest(form.get("form_key", "").encode("utf-8", "replace"), self._access.form_key.encode()):
            raise HTTPException(403, "this form is from before the dashboard was started anew: load the page again")
        return form

    # ---- help ----

    def _folder(self, request: Request) -> Place:
        try:
            return places.find(self._store, request.path_params["sprint"])
        except (StoreError, ValueError) as error:
            raise HTTPException(404, str(error)) from None

    def _view(self, folder: Place) -> tuple[SprintView, str]:
        """What its summary says, and why there is none."""
        if folder.kind != "sprint":
            return sprint_view(places.single(folder.path)), ""
        try:
            return sprint_view(self._store.summary(folder.id)), ""
        except StoreError as error:
            goal = next((row.goal for row in self._listing.rows() if row.id == folder.id), "")
            return sprint_view({"goal": goal}), str(error)

    def _seen(self) -> dict[str, Any]:
        try:
            return gpu_view(self._gpus())
        except (ExecutorError, OSError) as error:
            return {"problem": readable.line(error), "driver": "", "devices": [], "queue": []}

    def _sent(self, work: Callable[[Path], Response], request: Request) -> Response:
        try:
            return work(self._folder(request).path)
        except files.NotThere:
            raise HTTPException(404, "there is no such file") from None

    def _page(self, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        html = self._templates.get_template(template).render(**context)
        # A name may hold halves of characters (file systems and JSON have them), which no encoding takes.
        return HTMLResponse(html.encode("utf-8", "replace"), status)

    def problem(self, request: Request, error: Exception) -> Response:
        """What cannot be answered, as a page."""
        assert isinstance(error, HTTPException)
        said = readable.line(error.detail, 600)
        return self._page("problem.html.j2", error.status_code, title="Not possible", said=said)

    def failure(self, request: Request, error: Exception) -> Response:
        """A mistake of ours; its trace is for the log, not for the browser."""
        return PlainTextResponse("the dashboard failed to answer\n", 500)


def _compared(found: list[tuple[str, SprintView]]) -> Table:
    """One column for each sprint, one row for whatever any of them has."""
    columns = [dict(_facts_of(view)) for _, view in found]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = tuple((name, *(column.get(name, "–") for column in columns)) for name in names)
    return Table(("", *(sprint for sprint, _ in found)), rows)


def _facts_of(view: SprintView) -> list[tuple[str, str]]:
    found = [
        ("goal", view.goal),
        ("outcome", view.outcome),
        ("verdict", view.verdict),
        *view.facts,
        *view.policy,
        *view.use,
    ]
    found += [(f"mean of {row[0]}", f"{row[2]} (sd {row[3]}; {row[1]})") for row in view.arms.rows]
    found += [(row[0], f"{row[2]} ({row[3]}), p {row[5]}") for row in view.contrasts.rows]
    found += [(f"limit: {row[0]}", row[2]) for row in view.limits.rows]
    return [(name, value) for name, value in found if value]


def _params(place: Place) -> list[tuple[str, str]]:
    """With what a trial was run."""
    found = list(places.read_json(place.path, "params.json").items())[:100]
    return [(readable.line(name, 60), readable.line(value, 200)) for name, value in found]


def _last_of(path: Path) -> tuple[str, int]:
    """The end of a log as text, and how many bytes are before it."""
    with Tail(path, first=_LOG_SHOWN) as tail:
        grown = tail.look(_LOG_SHOWN)
    return readable.plain(grown.data.decode("utf-8", "replace")), grown.skipped


def _whole(value: str, otherwise: Any) -> Any:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 18 else otherwise


class _Anything(Convertor[str]):
    """The rest of an address, whatever is in it: Starlette's own `path` ends at a line feed."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", _Anything())


def _last_name(request: Request) -> str:
    """The name at an address's end as the file system has it: bytes that are no UTF-8 too."""
    raw: bytes = request.scope["raw_path"]
    return os.fsdecode(unquote_to_bytes(b"/".join(raw.split(b"/")[4:])))


def _static() -> Callable[[Request], Response]:
    """Our own files, read once; nothing else is served from there."""
    known = {path.name: path.read_bytes() for path in (_HERE / "static").iterdir() if path.suffix in _KINDS}

    def answer(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in known:
            raise HTTPException(404, "there is no such file")
        headers = {"Cache-Control": "no-cache"}
        return Response(known[name], media_type=_KINDS[Path(name).suffix], headers=headers)

    return answer
