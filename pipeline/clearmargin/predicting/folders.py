"""A folder of pictures, volumes and clips, one after the other: what fails is said, the others are done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from clearmargin.errors import InputError
from clearmargin.failures import reason_of
from clearmargin.formats import READERS, Opened, open_source
from clearmargin.predicting.cases import Predicted, predict_source
from clearmargin.predicting.predictor import Predictor
from clearmargin.privacy import case_of_file, record_case
from clearmargin.report.progress import progress

__all__ = ["predict_folder"]

log = logging.getLogger(__name__)


def predict_folder(
    opened: Opened,
    out: Path,
    predictor: Predictor,
    *,
    outputs: Sequence[str] | None,
    on_done: Callable[[Predicted], object],
) -> tuple[list[Predicted], dict[str, str]]:
    """Segment each file of a folder; return what was done, and why others failed, by case id.

    Raises:
        InputError: The folder holds nothing that is read, or nothing could be segmented.
    """
    folder, files = opened.path, opened.files
    if files and opened.others:
        log.warning("%d file(s) of other kinds in the folder are left out", opened.others)
    if not files:
        raise InputError(
            f"'{folder}' holds nothing that can be segmented: expected DICOM, or files ending in {', '.join(READERS)}"
        )
    done: list[Predicted] = []
    failed: dict[str, str] = {}
    with progress("predict", len(files)) as bar:
        for path in files:
            name = case_of_file(path)
            try:
                one = open_source(path)
                name = one.case()
                if name in {*failed, *(d.case for d in done)}:
                    raise InputError(f"another file is called '{name}', too: leave out --names plain")
                for predicted in predict_source(one, out, predictor, outputs=outputs):
                    done.append(predicted)
                    on_done(predicted)
            except Exception as error:  # noqa: BLE001 - whatever one file provokes, the others are done
                reason = reason_of(error)
                while name in failed:  # with plain names
                    name += "-2"
                record_case(name, path)
                # The message may name the file, which was not typed by the user: the crosswalk knows it.
                failed[name] = reason.replace(path.name, name)
                log.warning("%s failed: %s", name, failed[name])
            bar.advance()
    if not done:
        first = next(iter(failed.values()))
        raise InputError(
            f"none of the {len(files)} files in '{folder}' could be segmented; the first: {first}"
        )
    return done, failed
