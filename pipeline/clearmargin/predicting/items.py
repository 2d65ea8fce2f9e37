"""What a batch does with one item: read it, predict it, write its folder, send what is asked for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from clearmargin.core import Image, Provenance
from clearmargin.errors import ClearMarginError, ConfigError, UnavailableError
from clearmargin.formats.dicom.media import forget_unpacked
from clearmargin.formats.video import Clip
from clearmargin.jobs.items import Item, NewItem, Outcome
from clearmargin.margins.assessment import Assessment
from clearmargin.outputs.folder import MANIFEST, check_case
from clearmargin.outputs.writers import Planned, chosen_outputs
from clearmargin.pacs.archive import Archive
from clearmargin.pacs.audit import Audit
from clearmargin.pacs.fetched import Fetched
from clearmargin.predicting.archived import archive_of, open_archived
from clearmargin.predicting.cases import Predicted, Reading, predict_clip, write_image
from clearmargin.predicting.discovery import Found, open_input
from clearmargin.predicting.predictor import Predictor

__all__ = [
    "Destination",
    "PredictItem",
    "new_item",
    "point_to_current",
    "recipe_of",
    "sweep_drafts",
]

CURRENT = "current"


class Destination(Protocol):
    """Where results are sent; values, as it goes to other processes. `pacs` has those that there are."""

    @property
    def name(self) -> str:
        """What it is called in the ledger."""
        ...

    def check(self) -> None:
        """Ask for an answer.

        Raises:
            UnavailableError: There is none.
        """
        ...

    def send(self, files: Sequence[Path]) -> list[tuple[str, str]]:
        """Send DICOM files; return SOPInstanceUID and SHA-256 of each, once the archive has confirmed that it has it.

        Raises:
            UnavailableError: It did not answer, or did not confirm: another try may succeed.
            InputError: It refused an object.
        """
        ...


def recipe_of(predictor: Predictor, reading: Reading, outputs: Sequence[str] | None) -> dict[str, Any]:
    """Return what, beside its content, makes an item's results what they are: the same recipe gives the same bytes.

    The device and the model's place do not belong to it.
    """
    made_by = predictor.provenance
    calibration = predictor.calibration
    stated = None if calibration is None else json.dumps(calibration.to_data(), sort_keys=True, default=str)
    asked = asdict(predictor)
    return {
        "provenance": asdict(made_by),
        "calibration": None if stated is None else hashlib.sha256(stated.encode()).hexdigest(),
        "asked": {name: asked[name] for name in asked if name not in ("model", "device")},
        "reading": {
            name: value for name, value in asdict(reading).items() if name not in ("series", "volume")
        },
        "outputs": None if outputs is None else list(outputs),
    }


def new_item(case: Found, recipe: str) -> NewItem:
    """Return the ledger's item of an input under a recipe, which is named by its digest."""
    volume = case.source.get("volume")
    text = json.dumps([case.content, case.case, volume, recipe])
    key = hashlib.sha256(text.encode()).hexdigest()
    return NewItem(key=key, recipe=recipe, case_id=case.case, source=case.source)


@dataclass(frozen=True)
class _Read:
    image: Image | None
    clip: Clip | None
    zip: Path | None = None
    fetched: Fetched | None = None

    def forget(self) -> None:
        """Remove what was unpacked or fetched for it."""
        if self.zip is not None:
            forget_unpacked(self.zip)
        if self.fetched is not None:
            self.fetched.remove()


@dataclass(frozen=True)
class _Computed:
    """An image with its assessment, which is to be written, or a clip, whose folder is."""

    read: _Read
    assessed: Assessment | None = None
    planned: Planned | None = None
    clip: Predicted | None = None


@dataclass(frozen=True, kw_only=True)
class PredictItem:
    """A batch's work (`jobs.worker.Work`): values, which go to any process.

    Attributes:
        predictor: The model; with several CUDA devices each process takes one.
        reading: How DICOM is read; series and volume are the item's own.
        outputs: What is written; None for the default.
        out: The output folder.
        destinations: Where DICOM results are sent.
        archives: Where series are fetched from.
        audit: Where what was fetched and sent is noted; None for nowhere.
        made_by: What the model was when the batch began: a process that finds another one ends.
    """

    predictor: Predictor
    reading: Reading
    outputs: tuple[str, ...] | None
    out: Path
    destinations: tuple[Destination, ...] = ()
    archives: tuple[Archive, ...] = ()
    audit: Audit | None = None
    made_by: Provenance | None = None

    def prepare(self, index: int) -> None:
        """Load the model; process ``index`` takes that CUDA device, if there are several."""
        import torch

        predictor = self.predictor
        devices = torch.cuda.device_count() if predictor.device in (None, "cuda") else 0
        if devices > 1:
            predictor = replace(predictor, device=f"cuda:{index % devices}")
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if threads.isdigit():
            torch.set_num_threads(int(threads))
        object.__setattr__(self, "predictor", predictor)  # of this process's own copy
        _ = predictor.segmenter
        if self.made_by is not None and predictor.provenance != self.made_by:
            raise ConfigError("--model was changed while the batch was running: start the batch again")

    def folder_of(self, item: Item) -> str:
        """Return where an item's results lie below the output folder."""
        return f"{item.case_id}/{item.key[:12]}"

    def read(self, item: Item) -> _Read:
        """Return the image, or the clip, whose frames are read as they are predicted."""
        with _said_without_files(item):
            return self._opened(item)

    def _opened(self, item: Item) -> _Read:
        zipped, fetched = None, None
        if item.source["kind"] == "archive":
            source = item.source
            opened, which, fetched = open_archived(archive_of(self.archives, source), source)
            self._note("fetched", item, peer=source["archive"], series=source["uid"], objects=source["count"])
        else:
            opened, which = open_input(item.source)
            name = item.source["names"][0]
            zipped = Path(item.source["root"]) / name if name.lower().endswith(".zip") else None
        if opened.kind == "clip":
            return _Read(image=None, clip=opened.clip(), zip=zipped, fetched=fetched)
        gates = asdict(self.reading) | which
        return _Read(image=opened.image(**gates), clip=None, zip=zipped, fetched=fetched)

    def compute(self, item: Item, loaded: _Read) -> _Computed:
        """Predict; of a clip the folder is written on the way."""
        with _said_without_files(item):
            return self._computed(item, loaded)

    def _computed(self, item: Item, loaded: _Read) -> _Computed:
        if loaded.image is not None:
            image = _named(loaded.image, item.case_id)
            planned = chosen_outputs(self.outputs, image, self.predictor.label_map)
            return _Computed(
                read=replace(loaded, image=image),
                assessed=self.predictor.predict_case(image),
                planned=planned,
            )
        if loaded.clip is None:
            raise ValueError("neither an image nor a clip was read")
        folder = self.out / self.folder_of(item)
        return _Computed(read=loaded, clip=predict_clip(loaded.clip, folder, self.predictor, self.outputs))

    def written(self, item: Item, computed: _Computed) -> Predicted:
        """Write an image's folder, if it is one, and say what was predicted."""
        if computed.clip is not None:
            return computed.clip
        image, assessed, planned = computed.read.image, computed.assessed, computed.planned
        if image is None or assessed is None or planned is None:
            raise ValueError("neither an image nor a clip was predicted")
        return write_image(
            image,
            self.out / self.folder_of(item),
            assessed,
            self.predictor,
            planned,
            predecessor=item.predecessor_folder or None,
        )

    def write(self, item: Item, computed: _Computed) -> Outcome:
        """Write the folder, sync it to the disk, and send its DICOM files."""
        predicted = self.written(item, computed)
        folder = predicted.folder
        _sync(folder)
        manifest = check_case(folder)
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        files[MANIFEST] = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        objects = [folder / name for name in files if name.endswith(".dcm")]
        sent = []
        for destination in self.destinations if objects else ():
            for uid, digest in destination.send(objects):
                sent.append((uid, digest, destination.name))
                self._note("sent", item, peer=destination.name, uid=uid, sha256=digest)
        computed.read.forget()
        return Outcome(
            state="done",
            reason="; ".join(f"{name} was not written: {why}" for name, why in predicted.left_out.items()),
            kind="Incomplete" if predicted.left_out else "",
            folder=self.folder_of(item),
            files=files,
            instances=predicted.instances,
            warned=len(predicted.warnings) > len(predicted.left_out),
            sent=tuple(sent),
        )

    def _note(self, event: str, item: Item, **fields: str | int) -> None:
        if self.audit is not None:
            self.audit.note(event, case=item.case_id, **fields)

    def away(self) -> str:
        """Return which archive does not answer; "" if all do, or refuse, which is an answer."""
        for archive in (*self.archives, *self.destinations):
            try:
                archive.check()
            except UnavailableError as error:
                return f"paused: {archive.name}: {error}; it goes on once the archive answers"
            except ClearMarginError:
                pass
        return ""

    def settle(self, item: Item, current: str) -> None:
        """Let ``OUT/CASE/current`` point to the case's current results."""
        point_to_current(self.out, item.case_id, current)


def point_to_current(out: Path, case: str, folder: str) -> None:
    """Let the link ``OUT/CASE/current`` name a folder, in one step; without a folder it is removed."""
    link = out / case / CURRENT
    name = folder.rpartition("/")[2]
    with suppress(FileNotFoundError, OSError):
        if str(link.readlink()) == name:
            return
    if not name:
        link.unlink(missing_ok=True)
        return
    draft = link.with_name(f".{CURRENT}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(name)
    draft.replace(link)


def sweep_drafts(out: Path, cases: Sequence[str]) -> None:
    """Remove what killed processes left half written in the folders of cases that nobody works on."""
    for case in cases:
        for left in (out / case).glob(".*"):
            if left.name.endswith((".part", ".old")):
                shutil.rmtree(left, ignore_errors=True)
            elif left.name.startswith(f".{CURRENT}."):
                left.unlink(missing_ok=True)


@contextmanager
def _said_without_files(item: Item) -> Iterator[None]:
    """Let an error from within name the case in place of files and folders, which the user did not type."""
    try:
        yield
    except ClearMarginError as error:
        said = str(error)
        root, names = Path(item.source.get("root", "")), item.source.get("names", ())
        for path in (*(root / name for name in names), root):
            for text in (str(path), path.name):
                said = said.replace(f"'{text}'", item.case_id) if text else said
        if len(names) == 1:
            said = said.replace(Path(names[0]).name, item.case_id)
        error.args = (said,)
        raise


def _named(image: Image, case: str) -> Image:
    """Return an image under the case id that the item has: a volume of several, or a file that was moved, keeps it."""
    if image.source.case == case:
        return image
    return replace(image, source=replace(image.source, case=case))


def _sync(folder: Path) -> None:
    """Bring a folder's files to the disk: what the ledger calls done survives a power cut."""
    for path in (*(p for p in folder.rglob("*") if p.is_file()), folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
