"""An error as the server reports it: a status, a message, and the nearest addresses or words that exist."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace

from paramdex import Atlas
from paramdex.web.cards.shapes import Fault, FaultKind
from paramdex.web.load.shares import BusyError, EndingError, LateError
from paramdex_schemas import KINDS, Address, AddressError, AtlasError, ParamdexError, QueryError, TokenError
from paramdex_schemas.errors import escaped
from paramdex_schemas.layout import Layout, Run

_KINDS: list[tuple[type[ParamdexError], int, FaultKind]] = [
    (BusyError, 429, "busy"),
    (LateError, 503, "busy"),
    (EndingError, 503, "busy"),
    (AddressError, 404, "address"),
    (TokenError, 404, "token"),
    (QueryError, 400, "query"),
    (AtlasError, 500, "atlas"),
]
_PARTS = re.compile(r"(?P<letter>[LHE])(?P<number>\d{1,9})|(?P<idx>\d{1,9})|(?P<name>[A-Za-z_]+)")


def fault(atlas: Atlas, error: ParamdexError, asked: str) -> Fault:
    """An error as a Fault. ``asked`` is the address that was asked for. No path of this machine is in the message."""
    status, kind = next(((status, kind) for cls, status, kind in _KINDS if isinstance(error, cls)), (500, "server"))
    message = str(error)
    for path in (str(atlas.path.resolve()), str(atlas.path)):
        message = message.replace(escaped(path), escaped(atlas.path.name))
    near: list[str] = []
    if kind == "address":
        near = nearest_addresses(atlas, asked)
    elif kind == "token" and "nearest words are " in message:
        near = message.rpartition("nearest words are ")[2].split(", ")
    return Fault(status=status, kind=kind, message=message, nearest=near)


def nearest_addresses(atlas: Atlas, text: str, n: int = 4) -> list[str]:
    """At most n addresses that exist, nearest to one that does not.

    First the model with the nearest name; in it the place that agrees in most parts, with numbers clipped to what the
    model has.
    """
    name, *parts = [part for part in text.split("/") if part][:8] or [""]
    names = list(atlas.models)
    folded = {each.casefold(): each for each in reversed(names)}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=n, cutoff=0.5)
    chosen = [name] if name in names else [folded[each] for each in close] or names[:n]
    wanted = _loose(parts)
    if not parts:
        return chosen
    found: list[str] = []
    for model in chosen:
        found += _in_layout(model, atlas.models[model].layout, wanted)
    return list(dict.fromkeys([*found, *chosen]))[:n]


def _loose(parts: list[str]) -> dict[str, str | int]:
    """What the parts of a mistyped address seem to mean: stack, layer, head, expert, kind, idx."""
    wanted: dict[str, str | int] = {}
    letters = {"L": "layer", "H": "head", "E": "expert"}
    for part in parts:
        match = _PARTS.fullmatch(part)
        if match is None:
            continue
        if match["letter"]:
            wanted[letters[match["letter"]]] = int(match["number"])
        elif match["idx"]:
            wanted["idx"] = int(match["idx"])
        elif part in ("encoder", "decoder", "cross"):
            wanted["stack"] = part
        elif re.fullmatch(r"[lhe]\d+", part.lower()):
            wanted[letters[part[0].upper()]] = int(part[1:])
        else:
            wanted["kind"] = next(iter(difflib.get_close_matches(part, list(KINDS), n=1, cutoff=0.5)), "ff_value")
    return wanted


def _in_layout(model: str, layout: Layout, wanted: dict[str, str | int]) -> list[str]:
    kind = wanted.get("kind") or ("ff_value" if "idx" in wanted else None)
    if kind is None and "head" not in wanted:
        place = _nearest_run(list(layout.runs), wanted)
        return [str(Address(model, place.layer, stack=place.stack))]
    if kind is None:
        if not layout.of("attn_query"):
            return []
        run = _nearest_run(layout.of("attn_query"), wanted)
        head = min(int(wanted["head"]), run.n_owners - 1)
        where = Address(model, run.layer, head, stack=run.stack)
        return [str(where), str(replace(where, head=None))]
    runs = layout.of(str(kind)) or layout.of("ff_value") or list(layout.runs)
    run = _nearest_run(runs, wanted)
    n_heads = run.n_owners * (run.group if run.owner == "kv_head" else 1)
    where = Address(
        model,
        run.layer,
        min(int(wanted.get("head", 0)), n_heads - 1) if run.owner in ("head", "kv_head") else None,
        run.kind,
        min(int(wanted.get("idx", 0)), run.size - 1),
        run.stack,
        min(int(wanted.get("expert", 0)), run.n_owners - 1) if run.owner == "expert" else None,
    )
    return [str(where), str(replace(where, idx=0)), str(replace(where, head=None, expert=None, kind=None, idx=None))]


def _nearest_run(runs: list[Run], wanted: dict[str, str | int]) -> Run:
    def distance(run: Run) -> tuple[bool, bool, int]:
        asked = wanted.get("layer")
        layers = 0 if asked is None or run.layer is None else abs(run.layer - int(asked))
        return (
            wanted.get("stack") not in (None, run.stack),
            ("expert" in wanted) != (run.owner == "expert"),
            layers + (0 if run.layer is not None else 1000),
        )

    return min(runs, key=distance)
