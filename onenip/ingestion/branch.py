"""The branch of arrivals: data that came in, versioned by DVC and committed whole."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from onenip.data import dvc, git
from onenip.data.manifest import DATA_DIR
from onenip.errors import DataError, VersioningError
from onenip.params import RetrainParams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataBranch:
    """The data of a checkout and the branch that their changes are committed to.

    Attributes:
        params: names the branch and its remote.
        root: the checkout.
    """

    params: RetrainParams
    root: Path

    def require_current(self, *, has_placed: bool) -> None:
        """Make sure that what is added here is added to all that came before.

        Args:
            has_placed: whether files were placed and not committed, by a run that was killed.

        Raises:
            DataError: if there is no checkout, branch and checkout went different ways, or a part of the data
                is not laid out here.
            VersioningError: if Git refuses.
        """
        if not (dvc.is_checkout(self.root) and git.is_checkout(self.root)):
            raise DataError(
                f"{self.root.resolve()}: no checkout of DVC and Git, which version what arrives; "
                "`onenip init DIR` makes one",
                path=self.root,
            )
        if remote := self.params.remote:
            git.follow(self.params.branch, remote=remote, root=self.root)
        self._require_same_line(has_placed=has_placed)
        self._require_whole_data()

    def commit(self, message: str) -> str:
        """Version `data/` with DVC, push it and commit its pointer to the branch; gives the commit.

        Raises:
            VersioningError: if DVC or Git refuses.
        """
        dvc.add([DATA_DIR], root=self.root)
        if dvc.has_remote(root=self.root):
            dvc.push([str(dvc.DATA_POINTER)], root=self.root)
        name = self.params.branch
        commit = git.commit([dvc.DATA_POINTER], message=message, branch=name, root=self.root)
        if remote := self.params.remote:
            git.push(name, remote=remote, root=self.root)
        log.info("%s: %s", name, message.partition("\n")[0])
        return commit

    def _require_same_line(self, *, has_placed: bool) -> None:
        """Refuse to build on data that lack what the branch of arrivals has."""
        name = self.params.branch
        tip = git.find_commit(f"refs/heads/{name}", root=self.root)
        if tip is None or git.is_ancestor(tip, root=self.root):
            return
        theirs = dvc.read_version_at(tip, root=self.root)
        if theirs == dvc.read_data_version(self.root):
            return
        if has_placed and self._has_all(theirs):
            return  # killed between placing and committing
        raise DataError(
            f"{dvc.DATA_POINTER} is not that of the branch {name}, which has newer arrivals; "
            f"merge it, or `git checkout {name} -- {dvc.DATA_POINTER} && dvc pull {dvc.DATA_POINTER}`",
            path=dvc.DATA_POINTER,
        )

    def _require_whole_data(self) -> None:
        """Refuse to version data of which a part is not laid out here: it would count as deleted."""
        folder = self.root / DATA_DIR
        named = dvc.count_files(self.root)
        present = sum(path.is_file() for path in folder.rglob("*"))
        if present < named:
            raise DataError(
                f"{folder}: {named - present} of {named} files that {dvc.DATA_POINTER} names are "
                "missing here; run `dvc pull`",
                path=folder,
            )

    def _has_all(self, version: str) -> bool:
        """Whether all files of a version of the data lie here."""
        try:
            names = dvc.list_files(version, root=self.root)
        except VersioningError:  # made elsewhere
            return False
        return all((self.root / DATA_DIR / name).is_file() for name in names)
