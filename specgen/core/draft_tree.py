"""Describes a draft that branches: several tokens may be proposed for one position. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROOT = -1
"""Parent of the first tokens of a draft: the last token of the text."""


@dataclass(frozen=True, slots=True)
class DraftTree:
    """A tree of drafted tokens, in preorder: a token is followed by all tokens that were drafted after it.

    Tokens with the same parent differ, so a text follows one path at most. A chain has one child each.

    Args:
        ids: The tokens.
        parents: Index of the token before each of them, or `ROOT`.
    """

    ids: tuple[int, ...]
    parents: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def depths(self) -> tuple[int, ...]:
        """Tokens of the draft before each token."""
        return depths_of(self.parents)

    @property
    def num_leaves(self) -> int:
        """Number of paths from the root to a last token."""
        return len(self.ids) - len(set(self.parents) - {ROOT})

    def followed(self, tokens: Sequence[int]) -> list[int]:
        """Returns the indices of the path that has these tokens, as far as there is one."""
        path: list[int] = []
        for token in tokens:
            child = self.child(path[-1] if path else ROOT, token)
            if child is None:
                break
            path.append(child)
        return path

    def children(self, index: int) -> list[int]:
        """Returns the indices of the tokens after a token, or after the text for `ROOT`; the first one is best."""
        return [child for child, parent in enumerate(self.parents) if parent == index]

    def child(self, index: int, token: int) -> int | None:
        """Returns the index of a token after another one, if it was drafted there."""
        return next((child for child in self.children(index) if self.ids[child] == token), None)

    def branch(self, path: Sequence[int] = ()) -> list[int]:
        """Returns the indices of a path from the root and of the first tokens after it, down to a leaf."""
        branch = list(path)
        while children := self.children(branch[-1] if branch else ROOT):
            branch.append(children[0])
        return branch


def depths_of(parents: Sequence[int]) -> tuple[int, ...]:
    """Returns how many tokens are between the root and each token; parents come before their children."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent == ROOT else depths[parent] + 1)
    return tuple(depths)


def path_to(parents: Sequence[int], index: int) -> list[int]:
    """Returns the indices from the first token to a token, which is included; nothing for `ROOT`."""
    path: list[int] = []
    while index != ROOT:
        path.append(index)
        index = parents[index]
    return path[::-1]
