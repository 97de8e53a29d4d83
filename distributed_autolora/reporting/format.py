"""How reports write names, numbers and times."""

from __future__ import annotations

import re

from distributed_autolora.records import EpochRecord


def attack_label(name: str) -> str:
    """Returns an attack's printed name: "pgd10" becomes "PGD-10", "pgd20-margin" becomes "PGD-20 margin"."""
    if found := re.fullmatch(r"(pgd\d+)-(\w+)", name):
        return f"{attack_label(found[1])} {found[2]}"
    letters, digits = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]
    return f"{letters.upper()}-{digits}" if digits else letters.upper()


def event(record: EpochRecord, *, short: bool = False) -> str:
    """Returns what the schedule did after an epoch, such as "halved, restored epoch 9"; "" for nothing."""
    events = []
    if record.halved:
        events.append("halved")
    elif record.next_lr < record.lr:
        events.append(f"lr x {record.next_lr / record.lr:.2g}")
    if record.restored:
        events.append(f"restored {'' if short else 'epoch '}{record.restored_epoch}")
    if record.stopped:
        events.append("stopped")
    return ", ".join(events)


def compact(number: float) -> str:
    """Returns a learning rate in at most 7 characters: 0.00125, 6.25e-4."""
    if number == 0 or number >= 0.001:
        return f"{number:.3g}"
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def pixel_fraction(epsilon: float) -> str:
    """Returns a perturbation size as "8/255" where it is such a fraction, else "0.1"."""
    levels = epsilon * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{epsilon:.4g}"


def duration(seconds: float) -> str:
    """Returns seconds as "0:42", "12:03" or "1:02:03"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def left_text(seconds: float) -> str:
    """Returns "about 31 min left", or hours where that reads better."""
    if seconds < 90:
        return "about a minute left" if seconds > 0 else "done"
    return f"about {seconds / 60:.0f} min left" if seconds < 2 * 3600 else f"about {seconds / 3600:.1f} h left"
