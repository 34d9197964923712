"""Pages of the site that lie outside `docs/`: the README is its first page, and measured results are part of it."""

from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks/results/transfer.md": "benchmarks/results/transfer.md",
    "benchmarks/results/segmentation.md": "benchmarks/results/segmentation.md",
    "benchmarks/results/cpu.md": "benchmarks/results/cpu/README.md",
    "benchmarks/results/cpu/growth.png": "benchmarks/results/cpu/growth.png",
}
# From links that work in the repository to links that work in the site.
LINKS = {
    "](docs/": "](",
    "](../benchmarks/results/cpu/README.md": "](benchmarks/results/cpu.md",
    "](../benchmarks/": "](benchmarks/",
    "](../../benchmarks/": "](../benchmarks/",
    "](../../docs/": "](../../",
    "](cpu/README.md": "](cpu.md",
    "](CONTRIBUTING.md": "](contributing.md",
    "](CHANGELOG.md": "](changelog.md",
    "](growth.png": "](cpu/growth.png",
}


def on_files(files, config):
    """Add the pages of `OUTSIDE`, and the tables and measurements that pages link to."""
    kept = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "benchmarks/results").rglob("*"))]
    kept = [path for path in kept if path.endswith((".md", ".json")) and path not in OUTSIDE.values()]
    for uri, path in {**OUTSIDE, **{path: path for path in kept}}.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite the links that differ."""
    for here, there in LINKS.items():
        markdown = markdown.replace(here, there)
    return markdown
