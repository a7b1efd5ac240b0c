"""From a folder to the Hub: verify, write the card, upload what is missing, compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from tq3.errors import BadInput, NetworkError, UsageError
from tq3.events import (
    Notice,
    Progress,
    Run,
    Uploading,
)
from tq3.format import config as tq_config
from tq3.format import manifest
from tq3.format.arguments import Unpack, of_its_types
from tq3.format.options import StrPath
from tq3.format.push_options import PushKeywords
from tq3.format.repositories import check_repository_name
from tq3.hub.publishing import Branch, Hasher, LocalFile, RemoteState, is_same
from tq3.hub.sharing import look_up, reasons_to_ask
from tq3.publication.card import CardFacts, gather_facts, write_card
from tq3.publication.files import choose_files
from tq3.publication.result import Publication
from tq3.publication.template import is_untouched
from tq3.storage.local import LocalFiles
from tq3.storage.sidecars import CARD, is_loaded_by_hosts
from tq3.verification.verify import verify_checkpoint

MayShare = Callable[[Sequence[str]], bool]

_READ_AT_ONCE = 4 * 2**20
# As many as huggingface_hub sends side by side.
_FILES_AT_ONCE = 5
_TOLD = 5
_GENERATED, _IN_FOLDER, _ON_HUB = "generated", "README.md of the folder", "the repository's own"


@of_its_types
def push_checkpoint(
    path: StrPath,
    repo_id: str,
    *,
    may_share: MayShare,
    bars: bool = False,
    **options: Unpack[PushKeywords],
) -> Run[Publication]:
    """Publish the TQ3 checkpoint `path` as the model `repo_id` on the Hub, telling what happens.

    may_share: asked with the reasons before a gated, private or non-commercial model is public
    bars: let huggingface_hub draw its progress bars while it uploads
    options: see `tq3.format.push_options.PushKeywords`

    Raises VerificationFailed for a checkpoint that is not sound, NetworkError for what the Hub
    does not let happen, UsageError, BadInput or StorageError. A push that ended early is completed
    by the same push: what was uploaded is not sent again.
    """
    check_repository_name(repo_id)
    revision, create_pr = options.get("revision"), options.get("create_pr", False)
    dry_run, template = options.get("dry_run", False), options.get("template")
    if revision == "":
        raise UsageError("--revision is empty", fix="name a branch")
    if create_pr and revision:
        raise UsageError("a pull request goes to the main branch", fix="--create-pr or --revision")
    started = time.perf_counter()
    with LocalFiles(path) as files:
        # What the Hub would refuse is known before minutes are spent on verifying.
        branch = Branch(repo_id, revision, create_pr=create_pr)
        if not dry_run:
            branch.check_login()
        push = _Push(files, branch, options.get("private", False))
        verification = yield from verify_checkpoint(files.folder)
        if not verification.ok:
            raise verification.refusal()
        facts = gather_facts(files, options.get("base_model"))
        yield from push.sharing_notices(facts)
        if not dry_run:
            push.check_sharing(may_share)
        yield from push.read_files()
        overwrite_card = options.get("overwrite_card", False)
        push.add_card(facts, overwrite_card, Path(template) if template else None)
        if not dry_run:
            yield from push.upload(bars)
        yield from push.notices()
        return push.publication(dry_run, time.perf_counter() - started)


class _Push:
    """One push: what is here, what is there, and what differs."""

    def __init__(self, files: LocalFiles, branch: Branch, private: bool) -> None:
        self._files = files
        self._branch = branch
        self._before = branch.look()
        self._private = self._before.private if self._before else private
        if private and not self._private:
            raise UsageError(
                "the repository is there already, and it is public",
                file=branch.name,
                fix="make it private in its settings, or choose another name",
            )
        self._started = 0.0
        self._local: dict[str, LocalFile] = {}
        self._left_out: dict[str, str] = {}
        self._reasons: list[str] = []
        self._card = _GENERATED
        self._url, self._revision = branch.url, branch.revision

    def sharing_notices(self, facts: CardFacts) -> Iterator[Notice]:
        """Notices of what speaks against a public push, and of what the card can't tell."""
        if not facts.base_model:
            yield Notice("the card will not name the source: give it with --base-model ORG/NAME")
        if self._private:
            return
        shown = look_up(facts.base_model) if facts.base_model else None
        if facts.base_model and not shown:
            yield Notice(f"the Hub does not tell whether {facts.base_model} is gated: look there")
        self._reasons = reasons_to_ask(facts.source_metadata, shown)
        yield from map(Notice, self._reasons)

    def check_sharing(self, may_share: MayShare) -> None:
        """Raise UsageError where the user does not want it to be public after all."""
        if self._reasons and not may_share(self._reasons):
            raise UsageError(
                f"not made public without your consent: {'; '.join(self._reasons)}",
                file=self._branch.name,
                fix="--private, or --yes where you have the right to share it",
            )

    def read_files(self) -> Iterator[Progress]:
        """Every file to publish but the card, with its identifiers."""
        names, self._left_out = choose_files(self._files)
        self._started = time.perf_counter()
        total, done = sum(map(self._files.size, names)), 0
        for name in names:
            n_bytes = self._files.size(name)
            hasher = Hasher(n_bytes)
            for offset in range(0, n_bytes, _READ_AT_ONCE):
                part = self._files.read(name, offset, min(_READ_AT_ONCE, n_bytes - offset))
                hasher.update(part)
                done += len(part)
                yield self._progress(done, total, name)
            self._local[name] = hasher.file(name, self._files.folder / name)
        self._check_others()

    def add_card(self, facts: CardFacts, overwrite: bool, template: Path | None) -> None:
        """README.md: the folder's or the repository's where somebody wrote one, else ours."""
        card = write_card(facts, self._branch.name, template)
        there = self._before and self._before.files.get(CARD)
        if not overwrite and (own := self._own_card()) is not None:
            card, self._card = own, _IN_FOLDER
        elif not overwrite and self._before and there:
            found = self._branch.read_text(CARD, self._before.commit)
            if not is_untouched(found):
                self._card = _ON_HUB
                return
        self._branch.check_card(card)
        data = card.encode()
        hasher = Hasher(len(data))
        hasher.update(data)
        self._local[CARD] = hasher.file(CARD, data)

    def upload(self, bars: bool) -> Iterator[Uploading]:
        """Send what is missing, commit it, and compare what is there then with what is here."""
        missing = self._missing()
        before = self._prepared()
        if not missing:
            return
        total, done, additions = sum(file.n_bytes for file in missing), 0, []
        for files in _batches(missing, _FILES_AT_ONCE):
            n_bytes = sum(file.n_bytes for file in files)
            yield Uploading(tuple(file.name for file in files), n_bytes, done, total)
            additions += self._branch.upload(files, show_bars=bars)
            done += n_bytes
        commit = self._branch.commit(additions, _message(missing), before.commit)
        self._url, self._revision = commit.pull_request or commit.url, commit.revision
        self._compare()

    def notices(self) -> Iterator[Notice]:
        """Notices of what did not go along, and why."""
        for name, why in self._left_out.items():
            yield Notice(f"not uploaded: {name} ({why})")
        if self._card == _ON_HUB:
            yield Notice(f"the repository's {CARD} was edited, and is kept (or --overwrite-card)")

    def publication(self, planned: bool, seconds: float) -> Publication:
        """The record of what was done, or would be."""
        missing = {file.name: file.n_bytes for file in self._missing()}
        there = self._before.files if self._before else {}
        return Publication(
            path=self._files.label,
            repo_id=self._branch.name,
            url=self._url,
            revision=self._revision,
            private=self._private,
            planned=planned,
            card=self._card,
            uploaded=missing,
            unchanged={
                name: file.n_bytes for name, file in self._local.items() if name not in missing
            },
            others=tuple(sorted(there.keys() - self._local.keys() - {CARD, ".gitattributes"})),
            seconds=seconds,
        )

    def _own_card(self) -> str | None:
        """The folder's README.md, if it is not one that we wrote and nobody touched."""
        if not self._files.has(CARD):
            return None
        data = self._files.read(CARD, 0, self._files.size(CARD))
        try:
            card = data.decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"not UTF-8: {error.reason}", file=self._files.folder / CARD) from None
        return None if is_untouched(card) else card

    def _missing(self) -> list[LocalFile]:
        there = self._before.files if self._before else {}
        return [file for file in self._local.values() if not is_same(file, there.get(file.name))]

    def _check_others(self) -> None:
        """Weights of another checkpoint would be loaded together with ours, or be replaced."""
        there = self._before.files if self._before else {}
        # The names alone say nothing: an ordinary model, such as the source itself, has the same.
        ours = set(self._local)
        if tq_config.FILE_NAME not in there:
            ours -= {file.name for file in self._missing()}
        top = sorted(name for name in there if is_loaded_by_hosts(name) and name not in ours)
        if top:
            more = f" and {len(top) - _TOLD} more" if len(top) > _TOLD else ""
            raise UsageError(
                "the repository has weights that are not of this checkpoint",
                file=self._branch.name,
                found=", ".join(top[:_TOLD]) + more,
                fix="take them away there, or push to another repository or --revision",
            )

    def _prepared(self) -> RemoteState:
        """The repository and its branch, made where they are missing."""
        if self._before is None:
            self._branch.create(private=self._private)
            self._before = self._branch.look()
            if self._before and self._private and not self._before.private:
                raise NetworkError("somebody just made it, and public", file=self._branch.name)
        if self._before is None:
            raise NetworkError("was created, and is not there", file=self._branch.name)
        self._private = self._before.private  # as the organisation wants it, where nobody said
        if not self._before.has_branch:
            self._branch.create_branch()
        return self._before

    def _compare(self) -> None:
        """Raise NetworkError unless every file on the Hub is the one that is here."""
        there = self._branch.files(self._revision)
        wrong = [name for name, file in self._local.items() if not is_same(file, there.get(name))]
        if wrong:
            raise NetworkError(
                f"after the upload {len(wrong)} files on the Hub are not those of this folder",
                file=self._branch.name,
                found=", ".join(wrong[:_TOLD]),
                fix="push again",
                repeatable=True,
            )

    def _progress(self, done: int, total: int, name: str) -> Progress:
        return Progress(
            bytes_done=done,
            bytes_before=0,
            bytes_total=total,
            weights_done=0,
            seconds=time.perf_counter() - self._started,
            tensor=name,
        )


def _batches(files: Iterable[LocalFile], number: int) -> Iterator[list[LocalFile]]:
    rest = iter(files)
    while batch := list(islice(rest, number)):
        yield batch


def _message(files: Sequence[LocalFile]) -> str:
    names = [file.name for file in files]
    what = "TQ3 checkpoint" if manifest.FILE_NAME in names else ", ".join(names[:_TOLD])
    return f"Upload {what} with tq3"
