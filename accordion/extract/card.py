"""The model card of a member of the family (Markdown, with the front matter that model hubs read)."""

from collections.abc import Mapping, Sequence
from typing import Any

CARD = "README.md"
UNITS = {"text": "a token", "image": "a bit", "video": "a bit", "audio": "a code"}


def member_card(
    name: str,
    origin: Mapping[str, Any],
    figures: Mapping[str, Any],
    full: Mapping[str, float],
    recovery: Mapping[str, Any] | None = None,
) -> str:
    """The card.

    Args:
        origin: layers, experts and top_k kept, and `parent_sha256`, the weights it was cut from.
        figures: parameters, active_parameters, bytes, val_loss, and, for one just cut, max_abs_logit_diff.
        full: validation losses of the full model on the same sequences.
        recovery: steps, tokens, flops and `val_loss_before`, if it was trained further on its own.
    """
    widths = [len(kept) for kept in origin["experts"]]
    sections = [
        "---\nlibrary_name: accordion\ntags: [mixture-of-experts, multimodal, elastic]\n---",
        f"# {name}",
        "A sub-model of an elastic mixture of experts that predicts text, images, video and audio. It was cut out of "
        f"the full model (weights `{origin['parent_sha256'][:16]}`): a layer or expert left out was not used, so "
        "nothing is approximated.",
        _table(
            ("what", "how much"),
            [
                ("layers", _indices(origin["layers"])),
                ("experts by layer", _alike(widths)),
                ("experts a token uses", _alike(origin["top_k"])),
                ("parameters", f"{figures['parameters']:,}"),
                ("active for a token", f"{figures['active_parameters']:,}"),
                ("bytes of weights", f"{figures['bytes']:,}"),
            ],
        ),
        "## Validation loss, nats",
        _losses(figures["val_loss"], full, recovery),
    ]
    if "max_abs_logit_diff" in figures:
        sections.append(
            f"Its logits differ from those of the full model run as this member by at most "
            f"{figures['max_abs_logit_diff']:.1e}."
        )
    if recovery is not None:
        sections.append(
            f"After it was cut out it was trained on its own for {recovery['steps']} steps, {recovery['tokens']:,} "
            f"positions, {recovery['flops']:.3g} floating-point operations."
        )
    if figures.get("huggingface"):
        sections.append(
            "`huggingface/` holds its text path as `Dots1ForCausalLM` of transformers: the same logits for text. "
            "Its token ids are those of Accordion's text tokenizer, which the folder does not hold."
        )
    sections += [
        "## Limits",
        "Small, and trained on the data its lineage names (`accordion inspect`). The losses are of validation "
        "sequences packed with this run's tokenizers, and compare with nothing else.",
    ]
    return "\n\n".join(sections) + "\n"


def _losses(own: Mapping[str, float], full: Mapping[str, float], recovery: Mapping[str, Any] | None) -> str:
    before = recovery["val_loss_before"] if recovery else None
    header = ["modality", "this member", *(["before recovery"] if before else []), "full model", "for"]
    rows = [
        [
            name,
            f"{own[name]:.4f}",
            *([f"{before[name]:.4f}"] if before else []),
            f"{full[name]:.4f}" if name in full else "",
            UNITS.get(name, ""),
        ]
        for name in own
    ]
    return _table(header, rows)


def _alike(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def _indices(values: Sequence[int]) -> str:
    return f"{len(values)} ({', '.join(map(str, values))})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
