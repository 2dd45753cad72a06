"""Shows an answer as bytes, as styled text with or without rejected tokens, by round, or as JSON; resolves --view."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import BinaryIO, Literal

from rich.console import Console

from specgen.core.draft_tree import path_to
from specgen.core.events import FinalText, Piece, RoundText, ServedText, TextEvent, TokenState
from specgen.render.jsonl import Document, dumps, event_document
from specgen.render.live import LiveView
from specgen.render.sanitize import sanitize
from specgen.render.terminal import ColorMode, is_ascii_only
from specgen.render.theme import PLAIN, mark_rejected
from specgen.render.view import Sanitizer, StyledView, View
from specgen.render.writers import ByteWriter, StyledText

ViewName = Literal["auto", "inline", "live", "text", "steps", "off"]
SanitizeMode = Literal["auto", "always", "never"]


def unchanged(text: str) -> str:
    """Returns the text as it is: the sanitizer for trusted output."""
    return text


class PlainView:
    """Writes the answer as UTF-8, flushed once per round. Adds a final newline to an answer without one.

    Args:
        stream: A binary stream; a text stream may have another encoding, or translate newlines.
        sanitizer: `unchanged` for the exact bytes.
    """

    def __init__(self, stream: BinaryIO, sanitizer: Sanitizer = unchanged) -> None:
        self._writer = ByteWriter(stream)
        self._sanitizer = sanitizer
        self._at_line_start = True

    def show(self, event: TextEvent) -> None:
        if isinstance(event, RoundText):
            self._write(self._sanitizer(event.kept))
        elif isinstance(event, ServedText | FinalText):
            self._write(self._sanitizer(event.text))

    def close(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._at_line_start = text.endswith("\n")
            self._writer.write(text.encode("utf-8", "replace"))


class TextView(StyledView):
    """Shows accepted tokens and the target's own in different styles, without rejected drafts: easy to copy."""

    def _round_parts(self, round_text: RoundText) -> list[StyledText]:
        return self._kept_parts(round_text.pieces, marks=not self._writer.has_styles)


class InlineView(StyledView):
    """Shows accepted tokens, the rejected token struck out, `⋯n` for n discarded, then the target's own token.

    Of a draft that branches, it shows the best branch, and `⋔n` for n others.
    """

    def _round_parts(self, round_text: RoundText) -> list[StyledText]:
        marks = not self._writer.has_styles
        accepted, rejected, own = _by_outcome(round_text)
        parts = self._kept_parts(accepted, marks=marks)
        others = self._rejected_parts(rejected, marks=marks) + self._branch_parts(round_text)
        return parts + self._kept_parts(own, marks=marks, before_own=others)

    def _branch_parts(self, round_text: RoundText) -> list[StyledText]:
        tree = round_text.round.tree
        if tree is None or tree.num_leaves < 2:
            return []
        return [("discarded", f"{self._writer.glyphs.branches}{tree.num_leaves - 1}")]

    def _rejected_parts(self, drafted: list[Piece], *, marks: bool) -> list[StyledText]:
        rejected = [piece for piece in drafted if piece.state is TokenState.REJECTED]
        if not rejected:
            return []
        num_discarded = len(drafted) - len(rejected)
        text = "".join(self._visible(piece.text) for piece in rejected)
        if marks:
            return [(PLAIN, mark_rejected(text, num_discarded))]
        count = f"{self._writer.glyphs.discarded}{num_discarded}" if num_discarded else ""
        return [("rejected", text), ("discarded", count)]


class StepsView(StyledView):
    """Shows one line per round: counts, time, accepted tokens, rejected and discarded ones, the target's own.

    #12    3/5    31 ms  ␣The ␣quick ␣brown | -␣dog -␣and | +␣fox

    Lines are not cut. The prefixes show the states, so a stream without styles needs no other marks. The other
    branches of a draft follow, each in a line that is indented by the depth of its first token.
    """

    def _round_parts(self, round_text: RoundText) -> list[StyledText]:
        round_ = round_text.round
        kept = f"{round_.num_accepted}/{len(round_.draft_ids)}"
        milliseconds = round_.seconds * 1000
        time = f"{milliseconds:.1f} ms" if milliseconds < 9.95 else f"{milliseconds:.0f} ms"
        parts: list[StyledText] = [("muted", f"#{round_.index:<4}{kept:>5}{time:>8}")]
        separator = (PLAIN, "  ")
        for prefix, pieces in zip(("", "-", "+"), _by_outcome(round_text), strict=True):
            if pieces:
                parts += [separator, *self._token_parts(prefix, pieces)]
                separator = ("muted", " | ")
        return [*parts, (PLAIN, "\n"), *self._branch_parts(round_text)]

    def _branch_parts(self, round_text: RoundText) -> list[StyledText]:
        tree, parts = round_text.round.tree, list[StyledText]()
        if tree is None:
            return parts
        shown = set(tree.followed(round_text.round.draft_ids))
        for index, depth in enumerate(tree.depths):
            if index not in shown:
                branch = tree.branch(path_to(tree.parents, index))[depth:]
                shown.update(branch)
                words = " ".join(f"-{self._visible(round_text.tree_texts[node])}" for node in branch)
                parts.append(("discarded", f"{' ' * (20 + 2 * depth)}{self._writer.glyphs.branch} {words}\n"))
        return parts

    def _final_parts(self, final: FinalText) -> list[StyledText]:
        text = f"  {self._visible(final.text)}" if final.text else ""
        return [("muted", f"end  {final.finish.reason}"), (PLAIN, f"{text}\n")]

    def _token_parts(self, prefix: str, pieces: list[Piece]) -> Iterable[StyledText]:
        for index, piece in enumerate(pieces):
            if index:
                yield PLAIN, " "
            yield piece.state, prefix + self._visible(piece.text)

    def _visible(self, piece_text: str) -> str:
        glyphs = self._writer.glyphs
        return super()._visible(piece_text).replace(" ", glyphs.space).replace("\t", glyphs.tab)


def _by_outcome(round_text: RoundText) -> tuple[list[Piece], list[Piece], list[Piece]]:
    """Returns the accepted tokens, the rejected and discarded ones, and the target's own."""
    kept = [piece for piece in round_text.pieces if piece.state.is_kept]
    return (
        [piece for piece in kept if piece.state is TokenState.ACCEPTED],
        [piece for piece in round_text.pieces if not piece.state.is_kept],
        [piece for piece in kept if piece.state is not TokenState.ACCEPTED],
    )


class NdjsonView:
    """Writes one document per line, each flushed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._writer = ByteWriter(stream)

    def show(self, event: TextEvent) -> None:
        if (document := event_document(event)) is not None:
            self.write(document)

    def write(self, document: Document) -> None:
        """Writes a document that is not an event of the generation: the start, the result, an error."""
        self._writer.write((dumps(document) + "\n").encode())

    def close(self) -> None:
        """Does nothing: every line is complete."""


def resolve_view(
    name: ViewName, *, is_terminal: bool, color: ColorMode = "auto", default: ViewName = "inline"
) -> ViewName:
    """Resolves `auto` for an answer on stdout.

    On a terminal it is `default`. In a pipe it is the exact bytes (`off`), unless `--color always` requests styles
    there; FORCE_COLOR alone does not, since build servers set it for all programs.
    """
    if name != "auto":
        return name
    return default if is_terminal or color == "always" else "off"


def make_view(
    name: ViewName,
    *,
    console: Console,
    binary: BinaryIO,
    is_terminal: bool,
    sanitize_mode: SanitizeMode = "auto",
) -> View:
    """Makes the view for an answer on stdout; `console` and `binary` both write there.

    `sanitize_mode` `auto` sanitizes everything except `off` in a pipe: a person reads all other views.
    """
    sanitizer: Sanitizer = partial(sanitize, ascii_only=is_ascii_only(console))
    if sanitize_mode == "never" or (sanitize_mode == "auto" and name == "off" and not is_terminal):
        sanitizer = unchanged
    if name == "off":
        return PlainView(binary, sanitizer)
    styled: dict[str, type[StyledView]] = {"live": LiveView, "text": TextView, "steps": StepsView}
    return styled.get(name, InlineView)(console, sanitizer)
