"""The model card of a member of the family (Markdown, with the front matter that model hubs read)."""

from collections.abc import Mapping, Sequence
from typing import Any

CARD = "README.md"
UNITS = {"text": "a token", "image": "a bit", "video": "a bit", "audio": "a code"}


def member_card(name: str, origin: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """The card.

    Args:
        origin: layers, experts and top_k kept; `parent_sha256`, the weights it was cut from; and, if it was trained
            further on its own, `recovery`.
        figures: parameters, active_parameters and bytes; and, where they are known, latency_ms, max_abs_logit_diff,
            val_loss, val_loss_full (of the full model on the same sequences) and val_loss_before (its recovery).
    """
    sections = [
        "---\nlibrary_name: accordion\ntags: [mixture-of-experts, multimodal, elastic]\n---",
        f"# {name}",
        "A sub-model of an elastic mixture of experts that predicts text, images, video and audio. It was cut out of "
        f"the full model (weights `{origin['parent_sha256'][:16]}`): a layer or expert left out was not used, so "
        "nothing is approximated.",
        _table(("what", "how much"), _sizes(origin, figures)),
        "## Validation loss, nats",
        _losses(figures),
    ]
    if "max_abs_logit_diff" in figures:
        sections.append(
            f"Its logits differ from those of the full model run as this member by at most "
            f"{figures['max_abs_logit_diff']:.1e}."
        )
    if "recovery" in origin:
        sections.append(_recovered(origin["recovery"]))
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


def _sizes(origin: Mapping[str, Any], figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("layers", _indices(origin["layers"])),
        ("experts by layer", _alike([len(kept) for kept in origin["experts"]])),
        ("experts a token uses", _alike(origin["top_k"])),
        ("parameters", f"{figures['parameters']:,}"),
        ("active for a token", f"{figures['active_parameters']:,}"),
        ("bytes of weights", f"{figures['bytes']:,}"),
    ]
    if "latency_ms" in figures:
        rows.append(("milliseconds for a sequence, where it was found", f"{figures['latency_ms']:.3g}"))
    return rows


def _recovered(recovery: Mapping[str, Any]) -> str:
    text = (
        f"After it was cut out it was trained on its own for {recovery['steps']} steps, {recovery['tokens']:,} "
        f"positions, {recovery['flops']:.3g} floating-point operations, from `{recovery['from']}`."
    )
    if earlier := recovery.get("earlier"):
        steps, flops = (sum(each[key] for each in earlier) for key in ("steps", "flops"))
        text += f" Recoveries before that one: {len(earlier)}, of {steps} steps and {flops:.3g} operations in all."
    return text


def _losses(figures: Mapping[str, Any]) -> str:
    if "val_loss" not in figures:
        return "Not measured: it was cut out by hand. Stage extract measures the members that a profile names."
    columns = {"this member": figures["val_loss"]}
    if "val_loss_before" in figures:
        columns["before recovery"] = figures["val_loss_before"]
    if "val_loss_full" in figures:
        columns["full model"] = figures["val_loss_full"]
    rows = [
        [name, *(f"{losses[name]:.4f}" for losses in columns.values()), UNITS[name]] for name in figures["val_loss"]
    ]
    return _table(["modality", *columns, "for"], rows)


def _alike(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def _indices(values: Sequence[int]) -> str:
    return f"{len(values)} ({', '.join(map(str, values))})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
