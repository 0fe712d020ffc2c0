"""One line of text for one thing: `poisson:rate=500`, `postgres:chapter`, `env:LAB_DSN`.

    spec   = name ["(" spec ")"] [":" part {"," part}]
    part   = key "=" value | variant

In parentheses stands what a wrapper wraps: `grouped(postgres:synchronous_commit=off):size=100`.

The same words stand in a notebook's parameters cell, on the command line and in the `runs` table. A `Registry` maps the
names of one kind (stores, workloads, pacers …) to functions; what a name accepts is that function's own signature.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, get_type_hints

from msgspec import Struct

T = TypeVar("T")


class UsageError(ValueError):
    """The user asked for something that cannot be; the message says what, where and how to mend it. Exit code 2."""


class Spec(Struct, frozen=True):
    """A parsed line: a name, what it wraps if it is a wrapper, at most one variant, and options still as text."""

    name: str
    variant: str = ""
    options: tuple[tuple[str, str], ...] = ()
    inner: Spec | None = None

    def __str__(self) -> str:
        parts = ([self.variant] if self.variant else []) + [f"{k}={v}" for k, v in self.options]
        wrapped = "" if self.inner is None else f"({self.inner})"
        return self.name + wrapped + (":" + ",".join(parts) if parts else "")


_NAME = re.compile(r"[A-Za-z_][\w.-]*\Z")
_DSN = re.compile(r"\w://|\bpassword\s*=", re.IGNORECASE)


def parse(text: str, kind: str = "spec") -> Spec:
    """`text` taken apart, or UsageError. A DSN is refused here, before any of it can be recorded or shown."""
    if _DSN.search(text):
        raise UsageError(
            f"{kind}: a DSN may hold a password and would be recorded; pass it by name: "
            f"export LAB_DSN='postgresql://…' and say env:LAB_DSN"
        )
    name, inner, rest = _wrapped(text.strip(), kind)
    if not _NAME.match(name):
        raise UsageError(f"{kind}: {shown(text)} does not start with a name (write name:key=value,key=value)")
    variants, options = _parts(rest, text, kind) if rest is not None else ([], {})
    if len(variants) > 1:
        raise UsageError(f"{kind}: {shown(text)} names two variants, {shown(variants[0])} and {shown(variants[1])}")
    wrapped = None if inner is None else parse(inner, kind)
    return Spec(name, variants[0] if variants else "", tuple(options.items()), wrapped)


def _wrapped(text: str, kind: str) -> tuple[str, str | None, str | None]:
    """`text` as name, what stands in its parentheses, and what stands behind the colon; None where there is none."""
    head, colon, rest = text.partition(":")
    name, opening, _ = head.partition("(")
    if not opening:
        return name, None, rest if colon else None
    closing = text.rfind(")")
    behind = text[closing + 1 :]
    if closing < 0 or (behind and not behind.startswith(":")):
        raise UsageError(f"{kind}: {shown(text)} has a parenthesis that is not closed (write name(inner):key=value)")
    return name, text[len(name) + 1 : closing], behind[1:] if behind else None


def _parts(rest: str, text: str, kind: str) -> tuple[list[str], dict[str, str]]:
    variants: list[str] = []
    options: dict[str, str] = {}
    for part in rest.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not _NAME.match(key) or (equals and not value):
            raise UsageError(f"{kind}: {shown(part)} in {shown(text)} is neither key=value nor the name of a variant")
        if not equals:
            variants.append(key)
        elif key in options:
            raise UsageError(f"{kind}: {key} is given twice in {shown(text)}")
        else:
            options[key] = value
    return variants, options


def shown(text: str, chars_max: int = 60) -> str:
    """`text` quoted for a message: control characters escaped, cut to `chars_max`."""
    return repr(text if len(text) <= chars_max else text[: chars_max - 1] + "…")


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name nobody registered, with the nearest one that exists."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {near[0]}?" if near else ""
    return UsageError(f"unknown {kind} {shown(name)}{hint} (known: {', '.join(known)})")


def value_of(text: str, kind: type, what: str) -> Any:
    """`text` as an int, float, bool or str; UsageError names `what` when it is none. NaN and infinity are refused."""
    try:
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        value = kind(text)
    except (ValueError, KeyError):
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        raise UsageError(f"{what}: {shown(text)} is not {words.get(kind, kind.__name__)}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{what}: {shown(text)} is not a finite number")
    return value


class Registry(Generic[T]):
    """The names of one kind. `@stores.register("memory")` above a function; its annotated keyword-only parameters are
    the options, a parameter called `variant` takes the variant, one called `inner` what the spec wraps, made already; the
    first line of its docstring is the help."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._makers: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        def add(maker: Callable[..., T]) -> Callable[..., T]:
            if name in self._makers:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._makers[name] = maker
            return maker

        return add

    def names(self) -> list[str]:
        return sorted(self._makers)

    def describe(self) -> Mapping[str, tuple[str, str]]:
        """name → (how to write it with its defaults, what it is)."""
        return {name: (self._usage(name), first_line(self._maker(name))) for name in self.names()}

    def make(self, text: str | Spec, **context: Any) -> T:
        """The thing `text` describes. `context` goes to parameters of those names if the maker has them."""
        spec = text if isinstance(text, Spec) else parse(text, self.kind)
        maker = self._maker(spec.name)
        accepted = self._options(spec.name)
        parameters = inspect.signature(maker).parameters
        arguments = {k: v for k, v in context.items() if k in parameters}
        if ("inner" in parameters) != (spec.inner is not None):
            raise UsageError(f"{self.kind}: write {self._usage(spec.name)}, not {shown(str(spec))}")
        if spec.inner is not None:
            arguments["inner"] = self.make(spec.inner, **context)
        if spec.variant:
            if "variant" not in accepted:
                raise UsageError(f"{self.kind} {spec.name} has no variants; write {self._usage(spec.name)}")
            arguments["variant"] = spec.variant
        for key, value in spec.options:
            if key not in accepted or key == "variant":
                raise unknown(f"option of {self.kind} {spec.name}", key, (k for k in accepted if k != "variant"))
            arguments[key] = value_of(value, accepted[key][0], f"{self.kind} {spec.name}, {key}")
        try:
            return maker(**arguments)
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{self.kind} {spec.name}: {error}") from None

    def modules(self, text: str | Spec) -> dict[str, str]:
        """Every name in `text`, what is wrapped included → the module that registered it."""
        spec = text if isinstance(text, Spec) else parse(text, self.kind)
        found = {} if spec.inner is None else self.modules(spec.inner)
        return {spec.name: getattr(self._maker(spec.name), "__module__", None) or "", **found}

    def accepts(self, text: str, option: str) -> bool:
        """Whether the thing `text` describes has an option of that name, not counting what it wraps."""
        return option in self._options(parse(text, self.kind).name)

    def _maker(self, name: str) -> Callable[..., T]:
        if name not in self._makers:
            raise unknown(self.kind, name, self.names())
        return self._makers[name]

    def _options(self, name: str) -> dict[str, tuple[type, Any]]:
        return options_of(self._maker(name))

    def _usage(self, name: str) -> str:
        options = self._options(name)
        variant = options.pop("variant", None)
        parts = ([f"[{variant[1] or 'variant'}]"] if variant else []) + [f"{k}={v[1]}" for k, v in options.items()]
        wrapper = f"({self.kind})" if "inner" in inspect.signature(self._maker(name)).parameters else ""
        return name + wrapper + (":" + ",".join(parts) if parts else "")


def options_of(maker: Callable[..., Any]) -> dict[str, tuple[type, Any]]:
    """The options of a maker: name → (type, default)."""
    hints = get_type_hints(maker)
    return {
        p.name: (hints[p.name], p.default)
        for p in inspect.signature(maker).parameters.values()
        # what comes without a default is context, given by the program and not by the spec
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }


def first_line(maker: Callable[..., Any]) -> str:
    """The help of a maker: how its docstring begins."""
    return (inspect.getdoc(maker) or "").partition("\n")[0]
