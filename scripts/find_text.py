"""List the images in which text is burned into the pixels, found by optical character recognition.

    pip install ".[ocr]"
    python scripts/find_text.py /hospital/export --output=text.csv
    python scripts/find_text.py /my/images --words=3

The set is read as a run reads it, so for DICOM ultrasound the crop to the regions is applied first. The CSV has one row
per image with text: its name, the number of words, and, with --show, the words themselves, which may identify patients.
Files that cannot be read are not checked; `text_not_read.csv` lists them.
Recognition misses text that is small, rotated or faint: an empty list is no proof that there is none.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from deblur_mae_jax.config import copy
from deblur_mae_jax.data import cells, copies, dataset, privacy, source_config
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError, one_line
from deblur_mae_jax.training.progress import Progress

# Small pictures are enlarged, so that their text is as large as the recogniser expects.
SIDE = 960


def recogniser():
    """A function from a gray picture to the words in it."""
    try:
        from rapidocr_onnxruntime import RapidOCR
    except ImportError as error:
        raise UserError(
            "text is found by RapidOCR, which is not installed: pip install '.[ocr]' in the repository"
        ) from error
    engine = RapidOCR()

    def words(picture):
        scale = max(1.0, SIDE / max(picture.size))
        large = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        found, _ = engine(np.asarray(large.convert("RGB")))
        return [word for _, text, _ in found or [] for word in text.split()]

    return words


def main(arguments=None):
    """Write the list; returns the number of words by name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="a folder, a CSV, DICOM files, or a packed set")
    parser.add_argument("--name", default="", help="config.data.name, if it cannot be seen from ROOT")
    parser.add_argument("--words", type=int, default=1, help="list images with at least so many words")
    parser.add_argument("--show", action="store_true", help="write the words too: they may identify patients")
    parser.add_argument("--output", default="text.csv")
    options = parser.parse_args(arguments)
    words_of, progress, output = recogniser(), Progress(), Path(options.output).expanduser()
    header = ["image", "words", *(["text"] if options.show else [])]
    cells.need_own(output, [header[:2], [*header[:2], "text"]], "a list of images with text")
    try:  # before hours of reading
        output.parent.mkdir(parents=True, exist_ok=True)
        open(output, "a").close()
    except OSError as error:
        raise UserError(f"--output: cannot write '{output}': {error.strerror or error}") from error
    privacy.use(output.parent)
    config = copy(source_config.config_for(options.root, options.name), {"data.max_bad_fraction": 0.999})
    source = dataset.load_source(config, "all")
    rows, unread = {}, [(skipped.name, skipped.reason) for skipped in source.skipped]
    with open(output, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i, name in enumerate(source.names):
            try:
                picture = copies.gray_of(np.asarray(source.read(i)))
            except (BadImage, OSError) as error:
                unread.append((name, str(error)))
                continue
            try:
                words = words_of(picture)
            except Exception as error:  # a recogniser fails in many ways, and one picture must not cost the others
                unread.append((name, f"the recogniser failed: {one_line(error)}"))
                continue
            if len(words) >= options.words:
                rows[name] = words
                writer.writerow([name, len(words), *([" ".join(words)] if options.show else [])])
                file.flush()  # a run that is stopped leaves what it found
            progress.update(f"reading: {i + 1} of {len(source)}, {len(rows)} with text")
    progress.print(f"{len(rows)} of {len(source)} images hold text: {output}")
    if unread:
        skipped = output.with_name(f"{output.stem}_not_read.csv")
        with open(skipped, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["file", "reason"], *unread])
        progress.print(f"{len(unread)} files could not be read and were NOT checked for text: {skipped}")
    return {name: len(words) for name, words in rows.items()}


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
