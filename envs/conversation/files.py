"""Catalogues from a file of edge lists.

The format is one `.npz` of integer arrays, each a list of pairs `[count, 2]` with ids
from 0:

- `item_attribute` (item, attribute), every item in at least one pair;
- `interaction_train`, `interaction_valid`, `interaction_test` (user, item), no pair in
  two of them;
- `attribute_group` (attribute, group), optional: a coarser view of the same items;
- `user_friend` (user, user) and `user_attribute` (user, attribute), optional.

The Last.fm benchmark of the literature in this format has two views: its fine tags are
"LastFM*", and the groups, for each item the union over its tags, are "LastFM" (33).
"""

from __future__ import annotations

import dataclasses
import itertools
import zipfile
from pathlib import Path

import numpy as np

from envs.conversation.catalogue import check_edges, require_attributes

SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class EdgeLists:
    """What a file holds, checked, on the host; all `int32[count, 2]`."""

    num_users: int
    num_items: int
    num_attributes: int
    item_attribute: np.ndarray
    interactions: dict[str, np.ndarray]
    """By split: `"train"`, `"valid"`, `"test"`. Only train may reach embeddings."""
    user_friend: np.ndarray
    user_attribute: np.ndarray
    """Empty where the attributes are groups: it speaks of the fine ones."""


def load(path: str | Path, *, groups: bool = False) -> EdgeLists:
    """Reads a file of edge lists.

    Args:
      path: of the `.npz`.
      groups: take the groups as attributes.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, lacks an array, or an array is not as above.
    """
    path = Path(path)
    arrays = _read(path)
    try:
        return _checked(arrays, groups)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {path}: the catalogue's edge lists are not part of rlx; "
            "envs.conversation.files describes the format"
        )
    try:
        # Opened here: `np.load` would leave a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError):
        raise ValueError(f"{path} is no intact .npz of plain arrays") from None


def _checked(arrays: dict[str, np.ndarray], groups: bool) -> EdgeLists:
    needed = ["item_attribute", *(f"interaction_{split}" for split in SPLITS)]
    needed += ["attribute_group"] if groups else []
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    unbounded = (2**31 - 1, 2**31 - 1)
    kept = {
        name: check_edges(name, arrays.get(name, np.zeros((0, 2), int)), unbounded)
        for name in (*needed, "user_friend", "user_attribute")
    }
    belongs = np.unique(kept["item_attribute"], axis=0)
    if not len(belongs):
        raise ValueError("item_attribute is empty")
    num_items, num_attributes = (int(n) + 1 for n in belongs.max(axis=0))
    shown = [kept[f"interaction_{split}"] for split in SPLITS]
    users = [edges[:, 0] for edges in (*shown, kept["user_attribute"])]
    users.append(kept["user_friend"].reshape(-1))
    num_users = 1 + max((int(ids.max()) for ids in users if len(ids)), default=-1)
    for split in SPLITS:
        name = f"interaction_{split}"
        check_edges(name, kept[name], (num_users, num_items))
    check_edges("user_attribute", kept["user_attribute"], (num_users, num_attributes))
    _require_disjoint(dict(zip(SPLITS, shown, strict=True)))
    if groups:
        belongs, num_attributes = _grouped(belongs, kept["attribute_group"])
        kept["user_attribute"] = np.zeros((0, 2), np.int32)
    require_attributes(belongs, num_items)
    return EdgeLists(
        num_users=num_users,
        num_items=num_items,
        num_attributes=num_attributes,
        item_attribute=belongs,
        interactions=dict(zip(SPLITS, shown, strict=True)),
        user_friend=kept["user_friend"],
        user_attribute=kept["user_attribute"],
    )


def _require_disjoint(splits: dict[str, np.ndarray]) -> None:
    """Checks that no interaction is in two splits.

    Raises:
      ValueError: one is: what is held out would be learned from.
    """
    pairs = {name: {*map(tuple, edges.tolist())} for name, edges in splits.items()}
    for one, other in itertools.combinations(pairs, 2):
        if both := pairs[one] & pairs[other]:
            raise ValueError(
                f"interaction_{one} and interaction_{other} share {len(both)} pairs, "
                f"{min(both)} first: what is held out must not be learned from"
            )


def _grouped(belongs: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, int]:
    """Items and the groups of their attributes, each pair once."""
    if not len(group):
        raise ValueError("attribute_group is empty")
    # For every pair (item, attribute), the range of the attribute's groups.
    group = group[np.argsort(group[:, 0], kind="stable")]
    first = np.searchsorted(group[:, 0], belongs[:, 1], "left")
    count = np.searchsorted(group[:, 0], belongs[:, 1], "right") - first
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    groups = group[np.repeat(first, count) + within, 1]
    pairs = np.stack([np.repeat(belongs[:, 0], count), groups], axis=1)
    return np.unique(pairs, axis=0), int(group[:, 1].max()) + 1
